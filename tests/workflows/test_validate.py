"""`seektune validate`: rows are read as training reads them."""

from pathlib import Path

import pytest

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.data.store import shard
from seektune.recipe.recipe import Recipe
from seektune.workflows.prepare_data import prepare_data
from seektune.workflows.validate import BAD, GOOD, UNKNOWN, Finding, check

from .conftest import Make


def data_of(asked: Recipe, cache: Path) -> Finding:
    return next(finding for finding in check(asked, None, cache) if finding.subject == "data")


@pytest.mark.slow
def test_all_datasets_are_read_and_stay_prepared(
    recipe: Make, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = write_hellaswag(tmp_path / "few", 9, 2)
    asked = recipe(data=[{"path": str(rows)}, {"path": str(few), "limit": 4}], batch__length=100)
    found = data_of(asked, tmp_path / "cache")
    assert found.state == GOOD
    first, second = found.said.split("; ")
    assert first.startswith("40 rows of ")
    assert f" tokens from {rows}, the longest " in first
    assert second.startswith("4 rows of ")
    monkeypatch.setattr(shard.ShardJob, "run", lambda self: pytest.fail("encoded again"))
    prepare_data(asked, tmp_path / "cache")


@pytest.mark.slow
def test_what_training_would_refuse_is_wrong(recipe: Make, rows: Path, tmp_path: Path) -> None:
    long = data_of(recipe(batch__length=20), tmp_path)
    assert long.state == BAD
    assert "examples that do not fit, of 40); set --batch.length=" in long.said
    other = data_of(recipe(data={"kind": "preference", "path": str(rows)}), tmp_path)
    assert (other.state, "needs an objective" in other.said) == (BAD, True)


@pytest.mark.parametrize(
    ("checkpoint", "state", "said"),
    [
        ("{tmp}/nowhere", BAD, "is neither a folder nor a Hub id"),
        (
            "{tmp}",
            BAD,
            "objective.teacher: {tmp}/config.json does not exist; a checkpoint folder holds config.json",
        ),
        ("some/where", UNKNOWN, "some/where is looked at when training begins"),
    ],
)
def test_checkpoints_beside_the_model_are_looked_at(
    recipe: Make, tmp_path: Path, checkpoint: str, state: str, said: str
) -> None:
    place = checkpoint.format(tmp=tmp_path)
    asked = recipe(objective={"name": "distill", "teacher": place})
    found = next(each for each in check(asked, None, tmp_path / "cache") if each.subject == "objective.teacher")
    assert (found.state, said.format(tmp=tmp_path) in found.said) == (state, True)


def test_rows_of_tasks_are_read_and_name_their_task(recipe: Make, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    tasks = [{"name": "validation"}, {"name": "answers", "path": str(file)}]

    def tried() -> list[Finding]:
        asked = recipe(evaluate={"tasks": tasks})
        return [found for found in check(asked, None, tmp_path / "cache") if found.subject == "tasks"]

    (missing,) = tried()
    assert (missing.state, missing.said) == (BAD, f"evaluate.tasks.1: {file} does not exist")
    file.write_text('{"prompt": "2+2?"}\n', encoding="utf-8")
    (wrong,) = tried()
    assert (wrong.state, "evaluate.tasks.1: " in wrong.said, " needs answer" in wrong.said) == (BAD, True, True)
    file.write_text('{"prompt": "2+2?", "answer": "4"}\n', encoding="utf-8")
    assert tried() == [Finding("tasks", GOOD, "the rows of 1 can be asked")]


def test_the_first_rows_of_streams_are_tried(recipe: Make, rows: Path, tmp_path: Path) -> None:
    found = data_of(recipe(data__stream=True), tmp_path)
    assert (found.state, found.said) == (GOOD, f"streamed from {rows}; 40 examples of its first rows can be read")
    (tmp_path / "train.jsonl").write_text("{\n", encoding="utf-8")
    bad = data_of(recipe(data={"path": str(tmp_path), "stream": True}), tmp_path)
    assert (bad.state, "train.jsonl line 1: not JSON" in bad.said) == (BAD, True)
    dropped = data_of(recipe(data__stream=True, batch__length=4, batch__overlong="drop"), tmp_path)
    assert (dropped.state, "rows give nothing to train on; see batch.overlong" in dropped.said) == (BAD, True)
    few = data_of(recipe(data__stream=True, batch__global_size=64), tmp_path)
    assert few.state == BAD
    assert few.said.endswith(
        "reader 40 of 64 finds no rows to train on; set --data.stream=false or a smaller --batch.global_size"
    )
