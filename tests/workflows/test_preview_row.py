"""`seektune data preview --dataset`: a row as its file has it, and what becomes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from seektune.workflows.preview_row import preview_row
from tests.data.conversations.rows import PLAIN, REASONED, answer, user
from tests.run_cli import seektune

from .conftest import Make

Show = Any


@pytest.fixture
def show(recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Show:
    """Prints a row of rows that are written first."""

    def shown(*rows: dict[str, Any], row: int = 0, length: int = 64, **keys: Any) -> str:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
        asked = recipe(data={"kind": "chat", "path": str(file), **keys}, batch__length=length)
        preview_row(asked, "rows", "train", row, tmp_path / "cache")
        return capsys.readouterr().out

    return shown


def test_taught_tokens_are_marked_in_every_example_of_a_row(show: Show) -> None:
    out = show(PLAIN, REASONED, row=1, length=512)
    assert "rows, train row 1: " in out
    assert "rows.jsonl line 2\n2 examples: a server drops old reasoning" in out
    assert "example 1 of 2: " in out
    lines = [line for line in out.split("\n") if line.startswith("  tokens  ")]
    assert ["".join(part[1:-1] for part in line.split("|") if part.startswith("«")) for line in lines] == [
        "easy</think>4<｜end▁of▁sentence｜>",
        "easier⏎⏎still</think>6<｜end▁of▁sentence｜>",
    ]
    assert "deepseek-recipe " in out


def test_a_bad_row_has_its_reason_and_its_fate(show: Show) -> None:
    out = show(PLAIN, {"messages": [user("a")]}, row=1)
    assert "bad row: no message has the role assistant" in out
    assert "data.on_bad_row is error: training refuses to start" in out
    assert "it is left out" in show(PLAIN, {"messages": [user("a")]}, row=1, on_bad_row="drop")


def test_a_line_that_is_not_json_is_shown_as_a_bad_row(
    tmp_path: Path, recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("{\n", encoding="utf-8")
    asked = recipe(data={"kind": "chat", "path": str(tmp_path / "rows.jsonl")})
    preview_row(asked, "rows", "train", 0, tmp_path / "cache")
    assert "bad row: not JSON" in capsys.readouterr().out


def test_an_example_that_does_not_fit_is_cut_where_the_row_ends(show: Show) -> None:
    out = show({"messages": [user("word " * 40), answer("b")]}, length=20)
    assert "more than batch.length 20; batch.overlong is error" in out
    assert " ✂ batch.length 20 ✂ " in out


def test_rows_that_training_leaves_out_say_so(show: Show) -> None:
    assert "left out: it repeats " not in show(PLAIN, PLAIN, row=1)
    out = show(PLAIN, REASONED, PLAIN, row=2, duplicates="drop")
    assert "left out: it repeats " in out
    assert "rows.jsonl line 1, and data.duplicates is drop" in out
    assert "held out: it is a validation row" in show(PLAIN, validation=0.999999)
    assert "held out" not in show(PLAIN, validation=1e-9)


def test_chosen_and_rejected_are_two_examples(show: Show) -> None:
    out = show({"prompt": "a", "chosen": "b", "rejected": "c"}, kind="preference")
    assert "2 examples: the chosen response, then the rejected one" in out
    assert "deepseek-recipe" not in out


def test_an_unknown_dataset_or_row_is_refused(show: Show, recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 1 row; --row must be below that"):
        show(PLAIN, row=1)
    with pytest.raises(ValueError, match="no dataset is called other; the recipe has "):
        preview_row(recipe(), "other", "train", 0, tmp_path)


@pytest.mark.slow
def test_the_command_prints_a_row(tmp_path: Path, config_file: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(PLAIN) + "\n", encoding="utf-8")
    (tmp_path / "r.yaml").write_text(
        f"model: {{config: {config_file}}}\ndata: {{kind: chat, path: rows.jsonl}}\n"
        "batch: {global_size: 1, length: 64}\nsteps: 1\n",
        encoding="utf-8",
    )
    done = seektune("data", "preview", "r.yaml", "--dataset", "rows", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "«4»|«<｜end▁of▁sentence｜>»" in done.stdout
    done = seektune("train", "r.yaml", "--data.kind=preference", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "data.kind preference needs an objective that compares two responses" in done.stderr
