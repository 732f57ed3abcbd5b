"""Tasks at their own cadence during training: they change nothing that is trained, and a resumed run repeats none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seektune.data.datasets.dataset import DataCache
from seektune.data.datasets.synthetic import write_hellaswag
from seektune.data.example import continuation
from seektune.data.packing import collate
from seektune.data.tokenizer import load_tokenizer
from seektune.io.jsonl import read_records
from seektune.parallel.dims import make_dims
from seektune.recipe.load import load_recipe
from seektune.recipe.recipe import Recipe
from seektune.run import tasks
from tests.read_run import losses
from tests.workflows.conftest import Make
from tests.workflows.test_train import stopped, train

SAMPLES = {"name": "samples", "every": 2, "max_new_tokens": 3, "prompts": ["The <b>man"]}


def with_tasks(recipe: Make, tmp_path: Path, **changes: Any) -> Any:
    (tmp_path / "own.jsonl").write_text('{"prompt": "The man", "answer": "picks"}\n', encoding="utf-8")
    answers = {"name": "answers", "path": str(tmp_path / "own.jsonl"), "metric": "contains", "max_new_tokens": 2}
    named = ["hellaswag", {"name": "validation", "every": 2}, SAMPLES, {**answers, "every": 3}]
    return recipe(evaluate={"limit": 6, "every": 2, "tasks": named}, steps=5, **changes)


def done(folder: Path, name: str) -> list[tuple[int, str]]:
    return [(line["step"], line["task"]) for line in read_records(folder / name)]


@pytest.mark.slow
def test_tasks_run_during_training_and_once_where_a_run_resumes(
    recipe: Make, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [{"path": str(rows), "label": "many"}, {"path": str(write_hellaswag(tmp_path / "few", 8, 3))}]
    evaluate = {"limit": 6, "every": 2, "tasks": []}
    bare = train(recipe(steps=5, data=data, evaluate=evaluate, run_dir=str(tmp_path / "bare")))
    wanted = with_tasks(recipe, tmp_path, data=data)
    stopped(wanted, monkeypatch, 3)
    folder = Path(wanted.run_dir)
    assert done(folder, "samples.jsonl") == [(0, "samples"), (2, "samples")]
    train(wanted)
    assert done(folder, "evaluations.jsonl") == [(2, "validation"), (3, "answers"), (4, "validation")]
    assert done(folder, "samples.jsonl") == [(0, "samples"), (2, "samples"), (4, "samples"), (5, "samples")]
    assert losses(folder) == losses(bare)
    assert load_recipe(folder / "recipe.yaml") == wanted
    scores = json.loads((folder / "evaluation.json").read_text())
    assert list(scores) == ["hellaswag", "validation", "answers"]
    assert scores["answers"]["before"]["n"] == scores["answers"]["after"]["n"] == 1
    held_out = {line["step"]: line for line in read_records(folder / "validation.jsonl")}
    for line in read_records(folder / "evaluations.jsonl"):
        if line["task"] == "validation":
            expected = held_out[line["step"]]
            assert line["values"]["loss"] == pytest.approx(expected["loss"], rel=1e-9)
            for name in ("many", "few"):
                assert line["values"][f"{name}_loss"] == pytest.approx(expected["datasets"][name], rel=1e-6)
    answers = [line["answers"] for line in read_records(folder / "samples.jsonl")]
    assert all(answer["prompt"] == "The <b>man" and answer["tokens"] <= 3 for (answer,) in answers)
    report = (folder / "report.html").read_text(encoding="utf-8")
    for part in ("<h2>Samples</h2>", "<th>step 0</th>", "<th>step 4</th>", "The &lt;b&gt;man", "validation during"):
        assert part in report
    assert report.count("loss on few") > 1
    assert "answers after step 3: rows 1" in capsys.readouterr().out


def made(recipe: Recipe, tmp_path: Path, world: int, note: Callable[[str], None]) -> tasks.RunTasks:
    config = recipe.model.architecture()
    assert config is not None
    tokenizer = load_tokenizer(config.vocab_size)
    batch = collate([[continuation([5, 6], [7], "x")]], tokenizer.pad_id)
    dims = make_dims(recipe.parallel, world, config)
    return tasks.make_tasks(recipe, config, dims, tasks.TaskData(tokenizer, [batch], DataCache(tmp_path, note)))


def test_each_task_has_its_own_cadence(recipe: Make, tmp_path: Path) -> None:
    found = made(with_tasks(recipe, tmp_path), tmp_path, 1, print)
    cadence = {each.task.info.name: each.every for each in found.repeated}
    assert cadence == {"hellaswag": None, "validation": 2, "answers": 3}
    assert [each.config.every for each in found.samples] == [2]


def test_where_weights_are_cut_decoding_is_left_out_with_a_reason(recipe: Make, tmp_path: Path) -> None:
    notes: list[str] = []
    found = made(with_tasks(recipe, tmp_path), tmp_path, 2, notes.append)
    assert [each.task.info.name for each in found.repeated] == ["hellaswag", "validation"]
    assert not found.samples
    whole = "parallel.dp_replicate=2 and parallel.dp_shard=1 keep them whole"
    reason = f"it decodes, and FSDP cuts the weights over 2 processes; {whole}"
    assert notes == [f"note: the task {name} does not run: {reason}" for name in ("samples", "answers")]


def test_where_a_process_has_two_pipeline_stages_decoding_is_left_out(recipe: Make, tmp_path: Path) -> None:
    notes: list[str] = []
    layout = {"pp_size": 2, "dp_shard": 1, "pipeline": {"schedule": "zbv"}}
    assert not made(with_tasks(recipe, tmp_path, parallel=layout), tmp_path, 2, notes.append).samples
    assert notes[0].endswith("a process has two pipeline stages (parallel.pipeline.schedule=zbv; 1f1b has one)")


@pytest.mark.parametrize("spread", [{"dp_replicate": 2, "ep_size": 2}, {"pp_size": 2}])
def test_where_only_experts_or_layers_are_spread_every_task_runs(
    recipe: Make, tmp_path: Path, spread: dict[str, int]
) -> None:
    notes: list[str] = []
    found = made(with_tasks(recipe, tmp_path, parallel={"dp_shard": 1, **spread}), tmp_path, 2, notes.append)
    assert [each.task.info.name for each in found.repeated] == ["hellaswag", "validation", "answers"]
    assert found.samples
    assert not notes


@pytest.mark.slow
def test_a_drafter_is_measured_by_default_where_the_layout_can_decode(recipe: Make, tmp_path: Path) -> None:
    spread = {"dp_replicate": 2, "dp_shard": 1, "ep_size": 2}
    for tasks_named, parallel, world, measured in (
        (None, {}, 1, True),
        (None, spread, 2, True),
        (None, {}, 2, False),
        (["drafter"], spread, 2, True),
        (["drafter"], {}, 2, False),
    ):
        notes: list[str] = []
        asked = recipe(evaluate={"limit": 6, "tasks": tasks_named}, parallel=parallel)
        found = made(asked, tmp_path, world, notes.append)
        assert ("drafter" in [each.task.info.name for each in found.repeated]) == measured
        assert [note.split(":")[1] for note in notes] == [" the task drafter does not run"] * bool(
            tasks_named and not measured
        )
