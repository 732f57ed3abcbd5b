"""A new dataset is one file in data/datasets and one line in the registry: shown with a copy of the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run_cli import ROOT

FILE = '''"""Lines: each line of a text file is taught as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from seektune.data.datasets.dataset import DataCache, DataConfig, EncodeSettings, RowEncoder, Split
from seektune.data.example import Example, continuation
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowList


class LinesConfig(DataConfig):
    """Lines of text."""

    title: ClassVar[str] = "Lines"
    kind: Literal["lines"]
    """Kind of the rows."""
    folder: Path
    """Has train.txt and validation.txt."""

    def source(self, split: Split, cache: DataCache) -> RowList:
        """As `DataConfig.source`."""
        lines = (self.folder / f"{split}.txt").read_text().splitlines()
        rows = [SourceRow.of({"text": line}, f"{split} line {number}") for number, line in enumerate(lines, start=1)]
        return RowList(str(self.folder), f"{self.folder} {split}", rows)

    def encoder(self, settings: EncodeSettings) -> RowEncoder:
        """As `DataConfig.encoder`."""
        return LinesEncoder(settings)


@dataclass(frozen=True)
class LinesEncoder(RowEncoder):
    """Encodes lines."""

    settings: EncodeSettings
    identity: str = "lines 1"

    def encode(self, rows: Sequence[SourceRow]) -> list[list[Example] | BadRow]:
        """As `RowEncoder.encode`."""
        tokenizer = self.settings.tokenizer
        return [
            [continuation([tokenizer.bos_id], [*tokenizer.encode(row.values["text"]), tokenizer.eos_id], row.place)]
            for row in rows
        ]
'''
LINE = '    "lines": LinesConfig,\n'
IMPORT = "from seektune.data.datasets.lines import LinesConfig\n"
RECIPE = """\
model: {{config: {config}, dtype: fp32}}
data: {{kind: lines, folder: {folder}}}
batch: {{global_size: 4, micro_size: 2, length: 64}}
optimizer: {{lr: 5e-3}}
evaluate: {{limit: 5}}
logging: {{tensorboard: false}}
steps: 3
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and the new dataset in it."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "seektune", folder / "seektune", ignore=shutil.ignore_patterns("__pycache__"))
    datasets = folder / "seektune" / "data" / "datasets"
    (datasets / "lines.py").write_text(FILE)
    registry = datasets / "registry.py"
    text = registry.read_text()
    first = '    "hellaswag": HellaswagConfig,\n'
    assert text.count(first) == 1
    registry.write_text(
        text.replace(first, first + LINE).replace("from seektune.section", IMPORT + "from seektune.section")
    )
    return folder


@pytest.fixture
def file(tmp_path: Path, config_file: Path) -> Path:
    for split, count in (("train", 12), ("validation", 8)):
        lines = "".join(f"The man carries box {i} and walks away.\n" for i in range(count))
        (tmp_path / f"{split}.txt").write_text(lines)
    path = tmp_path / "lines.yaml"
    path.write_text(RECIPE.format(config=config_file, folder=tmp_path))
    return path


def run(package: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(package), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", "seektune", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_it_is_previewed_and_validated(package: Path, file: Path) -> None:
    preview = run(package, "data", "preview", file)
    assert (preview.returncode, preview.stderr) == (0, "")
    assert f"Lines: 12 train rows from {file.parent}" in preview.stdout
    assert "  text    <｜begin▁of▁sentence｜>The man carries box" in preview.stdout
    found = run(package, "validate", file, "--json")
    assert found.returncode == 0, found.stdout + found.stderr
    said = {each["subject"]: each for each in json.loads(found.stdout)}
    assert said["data"]["state"] == "ok"
    assert said["data"]["said"].startswith("12 rows of ")


@pytest.mark.slow
def test_it_is_trained_on_and_measured_by_its_held_out_rows(package: Path, file: Path) -> None:
    folder = file.parent / "run"
    done = run(package, "train", file, f"--run_dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "lines, 12 training rows from" in done.stdout
    scores = json.loads((folder / "evaluation.json").read_text())
    assert scores.keys() == {"validation", "drafter"}
    assert scores["validation"]["after"]["n"] == 5
    assert scores["validation"]["after"]["loss"]["value"] < scores["validation"]["before"]["loss"]["value"]
    assert "\nvalidation next-token accuracy: " in done.stdout
    assert "\n\nLines.\n\n" in (folder / "model" / "README.md").read_text()


@pytest.mark.slow
def test_recipes_know_it(package: Path, file: Path) -> None:
    for override, said in (
        ("--data.kind=linse", "not 'linse'; did you mean lines?"),
        ("--data.path=x", "data.path is not a key of this section; its keys are kind, label, weight, "),
        ("--evaluate.tasks=[lines]", "unknown task 'lines'; the tasks are hellaswag, validation"),
    ):
        answer = run(package, "train", file, override)
        assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
        assert said in answer.stderr
    definitions = json.loads(run(package, "schema").stdout)["$defs"]
    assert definitions["LinesConfig"]["required"] == ["kind", "folder"]
