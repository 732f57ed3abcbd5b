"""Files of a teacher's likeliest tokens: what a run computes, completes, checks and reads."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.data.datasets.dataset import DataCache
from seektune.io.jsonl import as_line
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.teacher_files import COMPLETE, FiledTeacher, TeacherFiles
from seektune.recipe.checks import check_architecture
from seektune.recipe.objective_checks import check_objective
from seektune.recipe.recipe import Recipe
from seektune.run import teacher_files
from seektune.run.build import read_config
from seektune.run.context import RunContext
from seektune.run.data import TrainData, prepare_data
from seektune.run.resume import RunStart
from seektune.run.run_dir import locked
from seektune.run.teacher_files import fill_teacher_files, training_batches
from seektune.sequence import TEACHER_IDS, TEACHER_LOGPROBS
from seektune.signals import Interrupted, Interruption

from ..conftest import randomize
from ..train.tiny_run import CONFIG

KEPT = 6
Make = Callable[..., Recipe]


def save_teacher(folder: Path, seed: int) -> Path:
    model = DeepseekV4ForCausalLM(CONFIG.replace(vocab_size=512))
    randomize(model, seed)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher") / "model", 1)


@pytest.fixture
def distilling(teacher: Path, tmp_path: Path) -> Make:
    """A recipe on 20 rows of many lengths, of which two are the same; `objective` gets changes."""
    rows = [{"prompt": f"row {i % 19}", "completion": "ab " * (3 + i % 19)} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(map(as_line, rows)), encoding="utf-8")
    (tmp_path / "held.jsonl").write_text("".join(map(as_line, rows[:2])), encoding="utf-8")
    paths = {"path": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "held.jsonl")}
    data = {"kind": "prompt_completion", **paths}

    def make(changes: dict[str, Any] | None = None, batch: dict[str, Any] | None = None, **more: Any) -> Recipe:
        files = {"teacher_files": str(tmp_path / "files"), "teacher_top_k": KEPT}
        values = {
            "model": {"config": str(teacher / "config.json"), "dtype": "fp32"},
            "data": data | more,
            "batch": {"global_size": 4, "micro_size": 2, "length": 160} | (batch or {}),
            "evaluate": {"tasks": []},
            "objective": {"name": "distill", "teacher": str(teacher), **files, **(changes or {})},
            "steps": 3,
        }
        return check_objective(Recipe.model_validate_json(json.dumps(values), strict=True))

    return make


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the documents of each forward pass of a teacher."""
    found: list[int] = []
    compute = ParallelModel.top_tokens

    def counted(self: ParallelModel, batch: Any, *given: Any) -> Any:
        found.append(len(batch.tokens))
        return compute(self, batch, *given)

    monkeypatch.setattr(ParallelModel, "top_tokens", counted)
    return found


def filled(recipe: Recipe, folder: Path, interruption: Interruption | None = None) -> TrainData:
    """The data of a run, for which files are as it needs them."""
    config = read_config(recipe.model)
    mesh = Mesh.alone(torch.device("cpu"))
    recipe = check_architecture(recipe, config)
    data = prepare_data(recipe, config, DataCache(folder / "cache", lambda note: None), mesh)
    run = RunContext(recipe, "run", folder, RunStart(), config, mesh, interruption or Interruption())
    fill_teacher_files(run, data)
    return data


def columns(recipe: Recipe, data: TrainData, folder: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What the files give for each batch of rows, in order."""
    reference = FiledTeacher(TeacherFiles(folder / "files"), KEPT)
    for batch in training_batches(recipe, data, 1):
        found = reference.own(batch).columns
        yield found[TEACHER_IDS], found[TEACHER_LOGPROBS]


def test_files_have_what_the_teacher_predicts(
    distilling: Make, teacher: Path, tmp_path: Path, passes: list[int]
) -> None:
    """Each document is computed once; packed, streamed and moved ones are the same."""
    recipe = distilling({"temperature": 1.5})
    data = filled(recipe, tmp_path)
    assert len(TeacherFiles(tmp_path / "files").digests_U) == 19
    assert len(passes) == 10
    model = DeepseekV4ForCausalLM.from_pretrained(teacher)
    for batch, (ids, logprobs) in zip(training_batches(recipe, data, 1), columns(recipe, data, tmp_path), strict=True):
        with torch.no_grad():
            expected = torch.log_softmax(model(batch.tokens, documents=batch.documents).logits / 1.5, -1)[:, :-1]
        counted = batch.counted()
        kept = expected[counted].topk(KEPT)
        assert torch.equal(ids[:, 1:][counted].long(), kept.indices)
        torch.testing.assert_close(logprobs[:, 1:][counted][:, :KEPT], kept.values, rtol=1e-5, atol=1e-5)
        others = torch.log1p(-kept.values.exp().sum(1))
        torch.testing.assert_close(logprobs[:, 1:][counted][:, KEPT], others, rtol=1e-4, atol=1e-4)
        assert not logprobs[:, 1:][~counted].any()
    moved = shutil.copytree(teacher, tmp_path / "moved")
    for changes, more in (
        ({}, {}),
        ({"teacher": None}, {}),
        ({"teacher": str(moved)}, {"batch": {"pack": True}}),
        ({}, {"stream": True}),
        ({}, {"batch": {"pack": True}, "stream": True}),
    ):
        again = distilling({"temperature": 1.5, **changes}, **more)
        assert list(columns(again, filled(again, tmp_path), tmp_path))
    assert len(passes) == 10


def test_a_stopped_computation_continues(
    distilling: Make, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Interruption):
        def leave_together(self, anywhere: Any) -> None:
            if len(passes) == 7:
                raise Interrupted("SIGTERM")

    monkeypatch.setattr(teacher_files, "PART_NUMBERS", 1)
    with pytest.raises(Interrupted):
        filled(distilling(), tmp_path, Stopping())
    files = TeacherFiles(tmp_path / "files")
    assert files.parts == 7
    with pytest.raises(ValueError, match=r"files has nothing for a document of \d+ taught tokens: .*name objective"):
        list(columns(distilling(), filled(distilling({"teacher": None}), tmp_path), tmp_path))
    data = filled(distilling(), tmp_path)
    assert len(passes) == 10
    found = list(columns(distilling(), data, tmp_path))
    shutil.rmtree(tmp_path / "files")
    monkeypatch.setattr(teacher_files, "PART_NUMBERS", 2**20)
    passes.clear()
    with pytest.raises(Interrupted):
        filled(distilling(), tmp_path, Stopping())
    assert TeacherFiles(tmp_path / "files").parts == 1, "what was computed before the signal is kept"
    shutil.rmtree(tmp_path / "files")
    filled(distilling(), tmp_path)
    assert TeacherFiles(tmp_path / "files").parts == 1
    for stopped, whole in zip(found, columns(distilling(), data, tmp_path), strict=True):
        assert all(map(torch.equal, stopped, whole))


def test_other_rows_are_added(distilling: Make, tmp_path: Path, passes: list[int]) -> None:
    filled(distilling(), tmp_path)
    rows = tmp_path / "train.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace("row 1", "line 1"), encoding="utf-8")
    data = filled(distilling(), tmp_path)
    assert len(TeacherFiles(tmp_path / "files").digests_U) == 19 + 10
    assert len(passes) < 10 + 10
    assert list(columns(distilling(), data, tmp_path))


def test_files_of_something_else_are_refused(distilling: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^objective\.teacher_files: .*files has no teacher\.json: name objective"):
        filled(distilling({"teacher": None}), tmp_path)
    filled(distilling(), tmp_path)
    other = save_teacher(tmp_path / "other", 2)
    for changes, message in (
        ({"temperature": 2.0}, r"made with another temperature \(1\.0, not 2\.0\); name another folder"),
        ({"teacher_top_k": 5}, r"made with another teacher_top_k \(6, not 5\)"),
        ({"teacher": None, "teacher_top_k": 7}, r"made with another teacher_top_k \(6, not 7\)"),
        ({"teacher": str(other)}, r"made with another teacher \("),
        ({"teacher_top_k": 513}, r"teacher_top_k is 513, but the vocabulary has 512 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            filled(distilling(changes), tmp_path)
    with pytest.raises(ValueError, match=re.escape("batch.stages to []")):
        distilling(batch={"stages": [{"from_step": 2, "global_size": 8}]})
    record = json.loads((tmp_path / "files" / "teacher.json").read_text(encoding="utf-8"))
    record["made of"]["tokenizer"] = "another"
    (tmp_path / "files" / "teacher.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match=r"made with another tokenizer \(another, not"):
        filled(distilling({"teacher": None}), tmp_path)


def test_damaged_files_and_those_in_use_are_named(distilling: Make, tmp_path: Path) -> None:
    filled(distilling(), tmp_path)
    whole = tmp_path / "files" / "part-00000.safetensors"
    whole.write_bytes(whole.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"part-00000\.safetensors is damaged .*remove it"):
        TeacherFiles(tmp_path / "files")
    whole.unlink()
    filled(distilling(), tmp_path)
    assert len(TeacherFiles(tmp_path / "files").digests_U) == 19, "removed parts are computed again"
    record = tmp_path / "files" / "teacher.json"
    record.write_text(record.read_text(encoding="utf-8").replace(COMPLETE, "edited"), encoding="utf-8")
    with (
        locked(tmp_path / "files", "unused"),
        pytest.raises(ValueError, match="another process computes these files; let it finish"),
    ):
        filled(distilling(), tmp_path)
    filled(distilling(), tmp_path)
    assert len(TeacherFiles(tmp_path / "files").digests_U) == 19
