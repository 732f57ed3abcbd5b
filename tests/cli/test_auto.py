"""`parallel: auto` from the door: real processes train in the layout that is taken, and what cannot fit starts none."""

import json
import os
import re
from pathlib import Path

import pytest

from seektune.data.datasets.synthetic import write_hellaswag
from tests.cli.test_cli import TINY, refused
from tests.launch.forked import ForkedJob
from tests.patience import HUNG
from tests.places import ROOT
from tests.run_cli import CODE, python

WORDS = (
    "--batch.global_size=16",
    "--steps=2",
    "--evaluate.before=false",
    "--evaluate.after=false",
    "--evaluate.every=null",
    "--logging.to=[]",
)
LARGE = ["--batch.global_size=16", "--batch.micro_size=16", "--batch.length=4096"]
CRAMPED = """
import sys, psutil
from types import SimpleNamespace
psutil.virtual_memory = lambda: SimpleNamespace(total={memory})
import seektune.launch.local as launch
launch.launch = lambda job: print("started processes")
sys.argv[0] = "seektune"
from seektune.cli import main
main()
"""


@pytest.mark.slow
def test_auto_trains_in_the_layout_that_it_says(tmp_path: Path) -> None:
    rows = write_hellaswag(tmp_path / "rows", 20, 4)
    recipe = tmp_path / "auto.yaml"
    text = Path(TINY).read_text(encoding="utf-8")
    recipe.write_text(re.sub(r"\nparallel:\n(  .*\n)+", "\nparallel: auto\n", text))
    folder = tmp_path / "run"
    words = ("train", str(recipe), "--nproc-per-node=2", *WORDS, f"--data.path={rows}", f"--run_dir={folder}")
    with ForkedJob(CODE, words, ROOT, {**os.environ, "OMP_NUM_THREADS": "1"}, tmp_path / "printed") as job:
        printed, error = job.communicate(timeout=HUNG)
    assert job.returncode == 0, error
    said = re.search(r"parallel: auto takes (.+) \(up to", printed)
    assert said is not None, printed
    taken = dict(word.removeprefix("--parallel.").split("=") for word in said[1].split() if "parallel." in word)
    assert taken.keys() >= {"pp_size", "ep_size", "recompute"}
    kept = re.sub(r"\s", "", (folder / "recipe.yaml").read_text())
    assert all(f"{key.rpartition('.')[2]}:{value}" in kept for key, value in taken.items())
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "words", "code", "said"),
    [
        (88 * 10**8, LARGE, 2, r"does not fit: rank 0 .*; this fits: --parallel"),
        (1 * 10**9, LARGE, 2, "does not fit: rank 0 .*; no other layout does either"),
        (64 * 10**9, [], 0, "started processes"),
    ],
)
def test_what_cannot_fit_stops_before_any_process(memory: int, words: list[str], code: int, said: str) -> None:
    answer = python(CRAMPED.format(memory=memory), "train", TINY, "--nproc-per-node=4", *words)
    told = refused(answer, code) if code else answer.stdout
    assert re.search(said, told), told
    assert ("started processes" in answer.stdout) == (code == 0)
