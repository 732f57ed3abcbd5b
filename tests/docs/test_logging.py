"""The commands of docs/logging.md run on a small run; those for a browser parse."""

import shlex
from pathlib import Path

import pytest

from seektune.train.report_text import write_texts
from tests.run_cli import seektune
from tests.train.test_report import record_run, story

from .guides import commands

PAGE = "docs/logging.md"


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    for name in ("mine", "other"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(f"seed: {len(name)}\n", encoding="utf-8")
        (folder / "report.html").write_text("")
        record_run(folder, 2)
        write_texts(folder, story([]))
    shown = [shlex.split(each.line) for each in commands(PAGE) if not each.hardware]
    assert [words[:2] for words in shown] == [["seektune", "report"]] * 2
    for words in shown:
        done = seektune(*words[1:], cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert "2 steps" in (tmp_path / "runs" / "mine" / "report.html").read_text(encoding="utf-8")
    assert "seed" in (tmp_path / "comparison.html").read_text(encoding="utf-8")
