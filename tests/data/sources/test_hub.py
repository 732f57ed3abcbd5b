"""A dataset of the Hub, read from a server with its API: splits, mistakes, and later runs without it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from seektune.data.sources.hub import HubDataset
from seektune.io.json_file import write_json
from tests.data.sources.hub_server import COMMIT, HubServer
from tests.patience import HUNG
from tests.run_cli import ROOT

FILES = {
    "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n"
    b"  - {split: train, path: data/train*.jsonl}\n  - {split: test, path: data/test.jsonl}\n---\n",
    "data/train-0.jsonl": b'{"a": 1}\n\n{"a": {"b": null}}\n',
    "data/train-1.jsonl": b'{"a": "c"}\n',
    "data/test.jsonl": b'{"a": 4}\n',
}
READ = """
import json, sys
from pathlib import Path
from seektune.data.datasets.dataset import DataCache
from seektune.data.datasets.hellaswag import HellaswagConfig

found = []
for keys in json.loads(sys.argv[2]):
    section = HellaswagConfig(hub="org/chat", **keys)
    cache = DataCache(Path(sys.argv[1]), found.append)
    try:
        section.fetch(cache)
        source = section.source("validation" if "validation" in keys else "train", cache)
        found.append([source.title, [[row.place, row.values["a"]] for row in source.read(0, source.count())]])
    except (ValueError, OSError) as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
"""


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer("org/chat", FILES) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def read(folder: Path, endpoint: str, *sections: dict[str, str]) -> list:
    """What a process finds that reads sections; the Hub's library takes its address from the environment."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    del environment["HF_HUB_OFFLINE"]
    command = [sys.executable, "-P", "-c", READ, str(folder / "cache"), json.dumps(sections)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=HUNG)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_splits_are_read_as_they_are_and_again_without_the_hub(server: HubServer, tmp_path: Path) -> None:
    train = [
        ["org/chat data/train-0.jsonl line 1", 1],
        ["org/chat data/train-0.jsonl line 3", {"b": None}],
        ["org/chat data/train-1.jsonl line 1", "c"],
    ]
    test = ["org/chat test", [["org/chat data/test.jsonl line 1", 4]]]
    found = read(
        tmp_path, server.endpoint, {}, {"validation": "test"}, {"split": "dev"}, {"name": "x"}, {"revision": "v9"}
    )
    assert found[:2] == [["org/chat train", train], test]
    assert found[2] == "ValueError: org/chat has no split 'dev'; its splits are train, test"
    assert found[3].startswith("ValueError: org/chat: BuilderConfig 'x' not found. Available: ['default']")
    assert found[4] == "ValueError: org/chat has no revision 'v9'; check data.revision"
    server.shutdown()
    server.server_close()
    note, again, *other = read(tmp_path, server.endpoint, {}, {"revision": COMMIT})
    assert note.startswith("note: org/chat: the Hub cannot be reached (")
    assert note.endswith("its files of the last time are used")
    assert again == ["org/chat train", train]
    assert other[0].startswith("OSError: org/chat: the Hub cannot be reached")


def test_a_hub_that_is_away_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"org/chat: the Hub cannot be reached .*; fetch its files elsewhere") as caught:
        HubDataset("org/chat", None, None, tmp_path).files("train")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_files_that_hold_no_rows_are_named(tmp_path: Path) -> None:
    dataset = HubDataset("org/chat", None, COMMIT, tmp_path)
    place = f"hf://datasets/org/chat@{COMMIT}"
    write_json(dataset.listing, {"train": [f"{place}/train.jsonl"], "images": [f"{place}/more/0.tar"]})
    dataset.refresh(print)  # a commit does not change, so the Hub is not asked
    assert [file.name for file in dataset.files("train")] == ["org/chat train.jsonl"]
    with pytest.raises(ValueError, match=r"^org/chat more/0.tar: rows are read from .jsonl"):
        dataset.files("images")
