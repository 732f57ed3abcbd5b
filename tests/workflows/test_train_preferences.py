"""Runs that learn from preferences: with adapters or whole weights, any objective, interrupted and resumed."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.data.datasets.synthetic_preferences import synthetic_preferences
from seektune.io.jsonl import as_line
from seektune.io.run_files import REFERENCE, REPORT
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.model import ParallelModel
from seektune.parallel.reference import at_tokens
from seektune.recipe.load import load_recipe
from seektune.recipe.objective_checks import check_objective
from seektune.recipe.recipe import Recipe
from seektune.run.reference import make_reference
from seektune.sequence import REFERENCE as COLUMN
from seektune.sequence import Batch
from seektune.signals import Interrupted
from seektune.train import trainer
from seektune.workflows import train as workflow
from tests.places import RECIPES
from tests.read_run import untimed

LORA = {"targets": ["attn", "ffn.experts", "head"], "rank": 4, "alpha": 8}


def train(recipe: Recipe) -> Path:
    return workflow.train(recipe, "run", (), Path(recipe.run_dir or "").parent / "cache")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are not drawn, which takes as long as all steps."""

    def write(folder: Path, texts: object) -> Path:
        (folder / REPORT).touch()
        return folder / REPORT

    monkeypatch.setattr(workflow, "write_report", write)


@pytest.fixture
def preferring(recipe: Any, tmp_path: Path) -> Any:
    """Makes a recipe of three steps on 24 made pairs, with 8 held out; changes are by dotted key."""
    rows = synthetic_preferences()[:32]
    (tmp_path / "pairs").mkdir()
    for name, part in (("train", rows[:24]), ("validation", rows[24:])):
        (tmp_path / "pairs" / f"{name}.jsonl").write_text("".join(map(as_line, part)), encoding="utf-8")

    def make(**changes: Any) -> Recipe:
        values = {
            "data": {"kind": "preference", "path": str(tmp_path / "pairs")},
            "objective": {"name": "dpo"},
            "loss": {"mtp_weight": 0},
            "batch__length": 320,
            "evaluate__tasks": [],
        }
        return recipe(**values | changes)

    return make


@pytest.fixture
def base(tmp_path: Path, toy_config: Any) -> Path:
    """Weights in the released format."""
    config = toy_config(vocab_size=512, hidden_size=64, moe_intermediate_size=32)
    DeepseekV4ForCausalLM(config).save_pretrained(tmp_path / "base", format="released")
    return tmp_path / "base"


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_checkpoint_that_is_the_base_is_the_reference_that_adapters_off_are(
    preferring: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run with a checkpoint is stopped and resumed too; quantized weights of both keep their bytes."""
    common = {"lora": LORA, "model__config": None, "model__weights": str(base), "steps": 2}
    off = train(preferring(**common, run_dir=str(tmp_path / "off")))
    kept = {"name": "dpo", "reference_checkpoint": str(base), "reference_quantized": True}
    wanted = preferring(**common, run_dir=str(tmp_path / "checkpoint"), objective=kept)
    step = trainer.train_step

    def signalling(*arguments: Any) -> Any:
        if arguments[3] == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(trainer, "train_step", signalling)
    with pytest.raises(Interrupted):
        train(wanted)
    monkeypatch.setattr(trainer, "train_step", step)
    checkpoint = train(wanted)
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert untimed(checkpoint, name) == untimed(off, name)
    product = "adapter/adapter_model.safetensors"
    assert (checkpoint / product).read_bytes() == (off / product).read_bytes()
    assert not (checkpoint / REFERENCE).exists()


@pytest.mark.parametrize("section", [{"name": "dpo"}, {"name": "grpo", "reward": {"metric": "math"}, "beta": 0.1}])
def test_a_reference_checkpoint_has_the_logprobs_of_the_base_at_the_objectives_temperature(
    recipe: Any, base: Path, section: dict[str, Any]
) -> None:
    warm = {"temperature": 2.0} if section["name"] == "grpo" else {}
    model = ParallelModel.alone(DeepseekV4ForCausalLM.from_pretrained(base))
    tokens = torch.randint(512, (2, 12))
    batch = Batch(tokens, tokens, torch.ones_like(tokens))
    expected = at_tokens(model.own_logprobs(batch, 2.0 if warm else 1.0))
    kinds = ({}, {"reference_quantized": True}, {"reference_quantized": True, "reference_offload": "stream"})
    for kind in kinds:
        made = recipe(objective={**section, **warm, **kind, "reference_checkpoint": str(base)})
        found = make_reference(made, model).own(batch).columns[COLUMN]
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"reference_checkpoint": "a", "reference": "cached"}, "must be null with reference cached"),
        ({"reference_quantized": True}, "are of reference_checkpoint, which is null"),
        ({"reference_checkpoint": "a", "reference_offload": "stream"}, "stream needs reference_quantized"),
        (
            {"name": "grpo", "reward": {"metric": "math"}, "reference_checkpoint": "a"},
            "reference_checkpoint needs beta, the weight",
        ),
    ],
)
def test_keys_of_the_reference_without_effect_are_refused(preferring: Any, section: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        preferring(objective={"name": "dpo"} | section)


OBJECTIVES: list[dict[str, Any]] = [
    {"name": "ipo", "supervised_weight": 0.5},
    {"name": "kto"},
    {"name": "simpo"},
]


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("section", OBJECTIVES, ids=[str(section["name"]) for section in OBJECTIVES])
def test_each_objective_trains_and_names_its_parts(preferring: Any, section: dict[str, Any]) -> None:
    folder = train(preferring(objective=section, batch__pack=True, batch__length=600, evaluate__limit=3))
    steps = untimed(folder, "metrics.jsonl")
    held_out = untimed(folder, "validation.jsonl")
    assert [line["step"] for line in held_out] == [0, 2, 3]
    for line in (*steps, *held_out):
        assert 0 <= line["reward_accuracy"] <= 1
        assert line["chosen_tokens"] > 2
        assert ("kl" in line) == (section["name"] not in ("orpo", "simpo"))
    if section["name"] == "ipo":
        # the model is its own reference as training begins
        for line in (steps[0], held_out[0]):
            assert line["reward_margin"] == pytest.approx(0, abs=1e-6)
            assert line["kl"] == pytest.approx(0, abs=1e-6)
        assert abs(held_out[-1]["reward_margin"]) > 1e-4
    assert (folder / REFERENCE).is_dir() == (section["name"] in ("ipo", "kto"))


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("lora", [LORA, {}], ids=["adapters off", "cached"])
def test_a_stopped_run_resumes_with_the_same_bytes(
    preferring: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any]
) -> None:
    whole = train(preferring(lora=lora, run_dir=str(tmp_path / "whole")))
    wanted = preferring(lora=lora, run_dir=str(tmp_path / "parts"))
    step = trainer.train_step

    def signalling(*arguments: Any) -> Any:
        if arguments[3] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(trainer, "train_step", signalling)
    with pytest.raises(Interrupted):
        train(wanted)
    monkeypatch.undo()
    parts = train(wanted)
    assert (parts / REFERENCE).is_dir() is not bool(lora)
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert untimed(parts, name) == untimed(whole, name)
    product = "adapter/adapter_model.safetensors" if lora else "model/model.safetensors"
    assert (parts / product).read_bytes() == (whole / product).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_an_interrupted_reference_continues_and_another_start_computes_its_own(
    preferring: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seektune.run import reference

    monkeypatch.setattr(reference, "PART", 2)
    done: list[int] = []
    computed = reference._computed

    def counted(*args: Any) -> Any:
        if len(done) == 3:
            raise Interrupted("SIGTERM")
        done.append(1)
        return computed(*args)

    monkeypatch.setattr(reference, "_computed", counted)
    with pytest.raises(
        Interrupted, match=r"with --run_dir=\S+/run continues with the log-probabilities of the reference"
    ):
        train(preferring(steps=1))
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run" / REFERENCE).glob("part-*")}
    assert len(kept) == 3
    done.clear()
    done.append(-99)
    monkeypatch.setattr(reference, "_computed", computed)
    folder = train(preferring(steps=1))
    files = {file.name: file.stat().st_mtime_ns for file in (folder / REFERENCE).glob("part-*")}
    assert len(files) == 8
    assert kept.items() <= files.items()
    other = train(preferring(steps=2, resume=str(folder), run_dir=str(tmp_path / "other")))
    assert len(untimed(other, "metrics.jsonl")) == 1
    copies = {file.name: file.read_bytes() for file in (other / REFERENCE).iterdir()}
    assert copies == {file.name: file.read_bytes() for file in (folder / REFERENCE).iterdir()}
    held_out = tmp_path / "pairs" / "validation.jsonl"
    rows = held_out.read_text(encoding="utf-8")
    held_out.write_text("".join(rows.splitlines(keepends=True)[::-1]).replace("a", "b", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the reference's log-probabilities of this data"):
        train(preferring(steps=3, resume=str(other), run_dir=str(tmp_path / "changed")))
    held_out.write_text(rows, encoding="utf-8")
    shutil.rmtree(folder)
    again = train(preferring(steps=3, resume=str(other), run_dir=str(other)))
    assert [line["step"] for line in untimed(again, "metrics.jsonl")] == [2, 3]


@pytest.mark.slow
def test_each_dataset_has_its_held_out_accuracy(preferring: Any, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("train", "validation"):
        (tmp_path / "more" / f"{name}.jsonl").write_bytes((tmp_path / "pairs" / f"{name}.jsonl").read_bytes())
    data = [
        {"kind": "preference", "path": str(tmp_path / "pairs"), "label": "first"},
        {"kind": "preference", "path": str(tmp_path / "more"), "label": "second"},
    ]
    folder = train(preferring(data=data, steps=1, objective={"name": "orpo"}))
    for line in untimed(folder, "validation.jsonl"):
        assert line["parts_of_datasets"]["first"] == line["parts_of_datasets"]["second"]
        assert line["parts_of_datasets"]["first"]["reward_accuracy"] == pytest.approx(line["reward_accuracy"])
        assert line["datasets"]["first"] == pytest.approx(line["loss"])
    report = (folder / REPORT).read_text(encoding="utf-8")
    for expected in ("Preferences, held out", "accuracy after step", "chosen tokens"):
        assert expected in report


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_kto_learns_from_labelled_responses(preferring: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in synthetic_preferences()[:16]
        for name in ("chosen", "rejected", "rejected")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(map(as_line, rows)), encoding="utf-8")
    data = {"kind": "feedback", "path": str(tmp_path / "rows.jsonl"), "validation": 0.3}
    folder = train(preferring(data=data, objective={"name": "kto"}, steps=1, batch__global_size=16))
    (line,) = untimed(folder, "metrics.jsonl")
    assert 0 < line["chosen_share"] < 1
    assert line["kl"] == pytest.approx(0, abs=1e-5)
    assert line["loss"] == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(ValueError, match=r"data\.kind feedback needs objective\.name kto, not dpo"):
        train(preferring(data=data, run_dir=str(tmp_path / "other")))
    rows[0]["label"] = "good"
    (tmp_path / "rows.jsonl").write_text("".join(map(as_line, rows)), encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: label is 'good', which must be true or false"):
        train(preferring(data=data, objective={"name": "kto"}, run_dir=str(tmp_path / "bad")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"objective": {"name": "cross_entropy"}},
            "needs an objective that compares two responses, not objective.name",
        ),
        ({"data__kind": "chat"}, "objective.name dpo needs data.kind preference, not chat"),
        ({"data__weight_column": "w"}, "data.weight_column must be null: objective.name dpo counts each pair once"),
        ({"objective": {"name": "dpo", "reference": "adapters_off"}}, "adapters_off needs lora.targets"),
        ({"data__stream": True}, "objective.name dpo needs prepared rows; set data.stream to false"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_what_does_not_fit_is_one_line(preferring: Any, changes: dict[str, Any], said: str) -> None:
    base = {"data": preferring().data.model_dump(mode="json", exclude_unset=True)}
    with pytest.raises(ValueError, match=said) as raised:
        train(preferring(**base | changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["preference", "feedback"])
def test_responses_that_are_compared_are_not_taken_apart(preferring: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"split takes the responses of data\.kind {kind} apart; set --batch"):
        check_objective(preferring(data__kind=kind, objective={"name": "kto"}, batch__overlong="split"))


def test_the_mtp_block_is_not_trained_on_preferences() -> None:
    path = RECIPES / "deepseek_v4_tiny_dpo.yaml"
    assert load_recipe(path).loss.mtp_weight == 0
    with pytest.raises(ValueError, match="mtp_weight must be 0: the MTP block would learn the rejected answers of dpo"):
        load_recipe(path, ["--loss.mtp_weight=0.1"])
    with pytest.raises(ValueError, match="beta"):
        load_recipe(path, ["--objective.beta=0"])


def test_a_recipe_keeps_its_objective(preferring: Any) -> None:
    recipe = preferring(objective={"name": "kto", "undesirable_weight": 0.5})
    again = Recipe.model_validate_json(json.dumps(recipe.model_dump(mode="json")), strict=True)
    assert again == recipe
