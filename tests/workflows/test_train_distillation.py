"""Runs that learn from a teacher, with weights that are trained through the rounding of the released format."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.checkpoint.compare import compare
from seektune.checkpoint.convert import convert
from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.source import FolderSource
from seektune.data.tokenizer import load_tokenizer
from seektune.io.jsonl import read_records
from seektune.io.run_files import REPORT
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.fake_quantized import fake_quantize_modules, rounded_parameters
from seektune.model.transformer import TransformerPart
from seektune.parallel.model import ParallelModel
from seektune.recipe.objective_checks import check_objective
from seektune.recipe.recipe import Recipe
from seektune.run.frozen_models import check_frozen
from seektune.run.teacher import make_teacher
from seektune.sequence import TEACHER, Batch
from seektune.train.objective_section import FrozenModel
from seektune.workflows import train as workflow

QAT = {"train": {"qat": "released"}, "model__numerics": "released"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_config: Any) -> Path:
    """Released-format weights with widths that FP4 can hold."""
    config = toy_config(vocab_size=512, hidden_size=64, moe_intermediate_size=32)
    folder = tmp_path_factory.mktemp("base") / "model"
    DeepseekV4ForCausalLM(config).save_pretrained(folder, format="released")
    return folder


@pytest.fixture
def distilling(recipe: Any, base: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a recipe of three steps from the base; reports are not drawn."""

    def write(folder: Path, texts: object) -> Path:
        (folder / REPORT).touch()
        return folder / REPORT

    monkeypatch.setattr(workflow, "write_report", write)

    def make(**changes: Any) -> Recipe:
        mine = {"model__config": None, "model__weights": str(base), "evaluate__tasks": []}
        made: Recipe = recipe(**(mine | changes))
        return check_objective(made)

    return make


def train(recipe: Recipe, folder: Path) -> Path:
    return workflow.train(recipe.model_copy(update={"run_dir": str(folder)}), "run", (), folder.parent)


def steps(folder: Path) -> list[dict[str, Any]]:
    return list(read_records(folder / "metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_run_with_rounded_weights_learns_from_its_teacher_and_exports_what_it_computed(
    distilling: Any, base: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = []
    build = workflow.build_model

    def kept(*given: Any, **named: Any) -> Any:
        models.append(build(*given, **named))
        return models[0]

    monkeypatch.setattr(workflow, "build_model", kept)
    teacher = {"name": "distill", "teacher": str(base), "teacher_quantized": True, "share": 0.5, "temperature": 2.0}
    folder = train(distilling(objective=teacher, model__dtype=dtype, **QAT), tmp_path / "run")
    first, *_, last = steps(folder)
    assert last["loss"] == pytest.approx(0.5 * last["divergence"] + 0.5 * last["cross_entropy"], rel=1e-5)
    # the student begins as the teacher, whose activations are not rounded
    assert 0 < first["divergence"] < 0.01 < last["cross_entropy"] < first["cross_entropy"]
    assert FolderSource(folder / "model").kind("layers.1.ffn.experts.0.w1.weight") == "fp4"
    changed = {each.name for each in compare(base, folder / "model") if each.status != "same bytes"}
    assert "layers.1.attn.wq_a.weight" in changed
    assert not any("indexer" in name for name in changed), "what is not trained keeps its bytes"
    models[0].save_pretrained(tmp_path / "plain", dtype)
    convert(tmp_path / "plain", tmp_path / "converted", "released", original=base)
    assert {each.status for each in compare(folder / "model", tmp_path / "converted")} == {"same bytes"}
    assert torch.equal(*logits(models[0].whole, folder / "model"))
    assert torch.equal(*logits(models[0].whole, tmp_path / "converted"))


@torch.no_grad()
def logits(trained: TransformerPart, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the model in memory and of its export; norms, embedding and the like are stored in bf16."""
    rounded = set(rounded_parameters(trained))
    for name, parameter in trained.named_parameters():
        if parameter not in rounded and name.endswith(".weight") and FORMATS["released"].kind(name) == "bf16":
            parameter.copy_(parameter.bfloat16())
    again = DeepseekV4ForCausalLM.from_pretrained(folder, trained.dtype, "released")
    fake_quantize_modules(again, "released")
    ids = torch.randint(512, (1, 40))
    return again(ids).logits, DeepseekV4ForCausalLM.of(trained)(ids).logits


@pytest.mark.slow
def test_without_a_checkpoint_the_teacher_is_the_model_without_adapters(distilling: Any, tmp_path: Path) -> None:
    lora = {"targets": ["attn", "ffn.experts"], "rank": 2}
    made = distilling(objective={"name": "distill", "divergence": "reverse"}, lora=lora, model__quantized=True)
    folder = train(made, tmp_path / "run")
    first, *_, last = steps(folder)
    assert first["divergence"] == pytest.approx(0.0, abs=1e-6)
    assert last["loss"] == last["divergence"]
    lora = {"targets": ["attn", "head"], "rank": 2}
    made = distilling(objective={"name": "distill"}, lora=lora, model__quantized=True)
    with pytest.raises(ValueError, match=r"objective\.teacher null .* remove head from lora\.targets"):
        train(made, tmp_path / "other")


@pytest.mark.slow
def test_a_quantized_and_a_streamed_teacher_give_the_hidden_states_of_a_decoded_one(
    distilling: Any, base: Path
) -> None:
    student = ParallelModel.alone(DeepseekV4ForCausalLM.from_pretrained(base))
    assert any(name.startswith("mtp.") for name in student.shards())
    tokens = torch.randint(512, (2, 30))
    batch = Batch(tokens, tokens, torch.ones_like(tokens))
    kinds: list[dict[str, Any]] = [{}, {"teacher_quantized": True}]
    kinds.append({"teacher_quantized": True, "teacher_offload": "stream"})
    found = []
    for kind in kinds:
        made = distilling(objective={"name": "distill", "teacher": str(base), **kind})
        teacher = make_teacher(made, made.objective, student)
        assert teacher.head_VE is not None
        assert not any(name.startswith("mtp.") for name in teacher.model.shards()), "nothing reads the MTP block"
        found.append((teacher.own(batch).columns[TEACHER], teacher.head_VE))
    for hidden, head in found[1:]:
        assert torch.equal(hidden, found[0][0])
        assert torch.equal(head, found[0][1])


@pytest.mark.slow
def test_files_of_all_tokens_teach_what_the_teacher_does(distilling: Any, base: Path, tmp_path: Path) -> None:
    wanted = {"name": "distill", "teacher": str(base), "share": 0.5, "temperature": 1.5, "divergence": "reverse"}
    files = {"teacher_files": str(tmp_path / "files"), "teacher_top_k": 512}
    taught = steps(train(distilling(objective=wanted), tmp_path / "taught"))
    read = steps(train(distilling(objective=wanted | files), tmp_path / "read"))
    alone = steps(train(distilling(objective=wanted | files | {"teacher": None}), tmp_path / "alone"))
    for part in ("loss", "divergence", "cross_entropy", "grad_norm"):
        values = [each[part] for each in read]
        assert values == pytest.approx([each[part] for each in taught], rel=1e-5, abs=1e-6)
        assert values == [each[part] for each in alone]


def test_recipes_that_cannot_be_are_refused_in_one_line(distilling: Any, base: Path) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        (r"objective\.teacher must name a checkpoint", {"objective": {"name": "distill"}}),
        (
            r"teacher_offload stream needs objective\.teacher and objective\.teacher_quantized",
            {"objective": {"name": "distill", "teacher": str(base), "teacher_offload": "stream"}},
        ),
        (r"set model\.numerics to released", {"train": {"qat": "fp8"}}),
        (
            r"train\.qat trains whole weights; with lora\.targets, use lora\.merge_into",
            QAT | {"lora": {"targets": ["attn"]}},
        ),
    ]
    for message, changes in wrong:
        with pytest.raises(ValueError, match=message):
            distilling(**changes)


def test_a_teacher_of_another_vocabulary_is_refused(distilling: Any, base: Path, tmp_path: Path) -> None:
    values = json.loads((base / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**values, "vocab_size": 600}))
    made = distilling(objective={"name": "distill", "teacher": str(other)})
    with pytest.raises(ValueError, match=re.escape("predicts 600 tokens, but the model 512")):
        train(made, tmp_path / "run")


def test_a_teacher_with_other_tokens_of_as_many_ids_is_refused(base: Path, tmp_path: Path) -> None:
    config = DeepseekV4Config.from_pretrained(base)
    copied = shutil.copytree(base, tmp_path / "other")
    spec = json.loads(load_tokenizer(config.vocab_size).text)
    wanted = FrozenModel("objective.teacher", str(copied))
    (copied / "tokenizer.json").write_text(json.dumps(spec))
    check_frozen(wanted, config)
    first, second = list(spec["model"]["vocab"])[50:52]
    spec["model"]["vocab"] |= {first: spec["model"]["vocab"][second], second: spec["model"]["vocab"][first]}
    (copied / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(
        ValueError, match=r"^objective\.teacher .* was made for other tokens .*gives 2 tokens .* other ids"
    ):
        check_frozen(wanted, config)
