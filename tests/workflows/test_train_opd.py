"""Runs of on-policy distillation: teachers by dataset, what they log, stopped and resumed, and what is refused."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from seektune.io.jsonl import as_line
from seektune.io.run_files import REPORT
from seektune.lora.build import adapter_injector, add_adapters
from seektune.lora.config import LoraConfig
from seektune.lora.files import load_adapter, save_adapter
from seektune.lora.state import adapter_state
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.initialize import initialize
from seektune.parallel.config import ParallelConfig
from seektune.parallel.lora import init_adapters, with_adapter
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.parallelize import parallelize
from seektune.parallel.process_group import ProcessSlot
from seektune.recipe.load import load_recipe
from seektune.recipe.recipe import Recipe
from seektune.run import rollouts
from seektune.sequence import Batch
from seektune.signals import Interrupted
from seektune.train.rollout_objectives import OpdConfig
from seektune.workflows import train as workflow
from tests.distributed.workers import run_workers
from tests.places import RECIPES
from tests.read_run import untimed

LORA = {"targets": ["attn"], "rank": 2, "alpha": 4}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, toy_config: Callable[..., DeepseekV4Config]) -> Path:
    """Rows of two datasets, a teacher of another width and depth, and an adapter."""
    folder = tmp_path_factory.mktemp("taught")
    for name, sign in (("sums", "+"), ("products", "*")):
        rows = [{"prompt": f"{a} {sign} 1 =", "completion": f" {a}"} for a in range(9)]
        (folder / name).mkdir()
        for split, part in (("train", rows[:6]), ("validation", rows[6:])):
            (folder / name / f"{split}.jsonl").write_text("".join(map(as_line, part)), encoding="utf-8")
    wide = toy_config(vocab_size=512, hidden_size=48, num_hidden_layers=3, compress_ratios=[0, 4, 128, 0])
    DeepseekV4ForCausalLM(wide).save_pretrained(folder / "wide")
    model = adapted(DeepseekV4ForCausalLM(toy_config(vocab_size=512)), seed=1)
    save_adapter(model, folder / "adapter")
    return folder


def adapted(model: DeepseekV4ForCausalLM, seed: int) -> DeepseekV4ForCausalLM:
    add_adapters(model, LoraConfig(targets=("attn", "ffn.experts", "head"), rank=2), mtp=False, seed=seed)
    spoil(model)
    return model


def spoil(model: nn.Module) -> None:
    """Adapters that count."""
    for name, x in adapter_state(model).items():
        if name.endswith(".B"):
            nn.init.normal_(x, std=0.3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are not drawn."""

    def write(folder: Path, texts: object) -> Path:
        (folder / REPORT).touch()
        return folder / REPORT

    monkeypatch.setattr(workflow, "write_report", write)


@pytest.fixture
def distilled(recipe: Any, taught: Path) -> Any:
    """Makes a recipe of three steps of eight answers, of which two share a rollout."""

    def make(**changes: Any) -> Recipe:
        teachers = [
            {"label": "wide", "checkpoint": str(taught / "wide"), "datasets": ["sums"], "weight": 0.5},
            {"label": "low", "adapter": str(taught / "adapter")},
        ]
        values = {
            "data": [
                {"kind": "prompt_completion", "path": str(taught / name), "label": name}
                for name in ("sums", "products")
            ],
            "objective": {"name": "opd", "teachers": teachers, "max_new_tokens": 5, "steps_per_rollout": 2},
            "lora": LORA,
            "loss": {"mtp_weight": 0},
            "batch": {"global_size": 8, "micro_size": 4, "length": 24},
            "evaluate": {"every": 2, "tasks": []},
        }
        return recipe(**values | changes)

    return make


def train(recipe: Recipe) -> Path:
    return workflow.train(recipe, "run", (), Path(recipe.run_dir or "").parent / "cache")


@pytest.mark.slow
def test_a_run_stopped_in_a_rollout_resumes_with_the_same_bytes(
    distilled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: what is logged of a step and of held-out rows."""
    whole = train(distilled(run_dir=str(tmp_path / "whole")))
    for line in untimed(whole, "metrics.jsonl"):
        assert line["loss"] == pytest.approx(line["divergence"])
        parts = (line["divergence_wide"], line["divergence_low"])
        assert min(parts) < line["divergence"] < max(parts)
        assert 0 < line["entropy"] < 7
        assert line["mismatch_share"] == 0
    before, after, *_ = untimed(whole, "metrics.jsonl")
    assert after["loss"] < before["loss"], "on the same answers"
    first = untimed(whole, "validation.jsonl")[0]
    assert first["parts_of_datasets"]["sums"]["divergence"] == pytest.approx(first["divergence_wide"])
    assert first["parts_of_datasets"]["products"]["divergence"] == pytest.approx(first["divergence_low"])
    sample = rollouts.RolloutStream._sample

    def stopping(stream: Any) -> None:
        if stream.state_dict()["position"]:
            os.kill(os.getpid(), signal.SIGTERM)
        sample(stream)

    wanted = distilled(run_dir=str(tmp_path / "parts"))
    monkeypatch.setattr(rollouts.RolloutStream, "_sample", stopping)
    with pytest.raises(Interrupted):
        train(wanted)
    monkeypatch.setattr(rollouts.RolloutStream, "_sample", sample)
    parts = train(wanted)
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert untimed(parts, name) == untimed(whole, name)
    product = "adapter/adapter_model.safetensors"
    assert (parts / product).read_bytes() == (whole / product).read_bytes()


def worker(recipe: Recipe) -> None:
    """A run in one of several processes."""
    slot = ProcessSlot(dist.get_world_size(), dist.get_rank(), worker=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "process_group", lambda _: nullcontext())
        workflow.train(recipe, "run", (), Path(recipe.run_dir or "").parent / "cache", slot)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(distilled: Any, tmp_path: Path) -> None:
    one = train(distilled(run_dir=str(tmp_path / "one"), steps=1))
    layouts: dict[str, Any] = {"ep": {"ep_size": 2, "dp_replicate": 2, "dp_shard": 1}, "pp": {"pp_size": 2}}
    for which, parallel in layouts.items():
        run_workers(2, worker, distilled(run_dir=str(tmp_path / which), parallel=parallel, steps=1))
        for name in ("metrics.jsonl", "validation.jsonl"):
            for mine, theirs in zip(untimed(tmp_path / which, name), untimed(one, name), strict=True):
                for key in ("loss", "divergence_wide", "divergence_low", "entropy", "grad_norm"):
                    if key in theirs:
                        assert mine[key] == pytest.approx(theirs[key], rel=1e-3), (which, name, key)


def test_a_teacher_by_adapter_is_the_base_with_that_adapter_on_the_same_memory(
    taught: Path, toy_config: Callable[..., DeepseekV4Config]
) -> None:
    config = toy_config(vocab_size=512)
    lora = LoraConfig(targets=("attn", "head"), rank=3)
    layout = ParallelConfig()
    prepare = adapter_injector(config, lora, False, None)
    student = parallelize(config, Mesh.alone(), layout, torch.float32, prepare=prepare)
    initialize(student.base_shards(), config)
    init_adapters(student, seed=7)
    spoil(student.whole)
    teacher = with_adapter(student, taught / "adapter")
    again = DeepseekV4ForCausalLM(config)
    again.load_state_dict({name: x.tensor for name, x in student.base_shards().items()}, strict=False)
    load_adapter(again, taught / "adapter")
    tokens = torch.randint(512, (2, 30))
    batch = Batch(tokens, tokens, torch.ones_like(tokens))
    torch.testing.assert_close(teacher.own_hidden(batch), ParallelModel.alone(again).own_hidden(batch))
    assert torch.equal(teacher.whole.head.values(), again.head.values())
    mine = student.base_shards()
    shared = {name: x.tensor for name, x in teacher.base_shards().items() if name in mine}
    assert len(shared) > 40
    assert all(x.data_ptr() == mine[name].tensor.data_ptr() for name, x in shared.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([{"checkpoint": "a", "adapter": "b"}], "checkpoint and adapter exclude each other"),
        ([{"checkpoint": "a", "offload": "stream"}], "offload stream needs quantized"),
        ([{"quantized": True}], "quantized and offload are of checkpoint, which is null"),
        ([{"checkpoint": "a"}, {"checkpoint": "b"}], "a dataset has several teachers"),
        ([{"checkpoint": "a", "datasets": ["sums"]}], "no teacher for the dataset products"),
        ([{"checkpoint": "a", "datasets": ["sums", "other"]}, {"checkpoint": "b"}], "names the dataset other"),
        ([{"checkpoint": "a", "datasets": ["sums", "products"]}, {"checkpoint": "b"}], "1 teaches no dataset"),
        ([{"checkpoint": "a", "label": "1"}, {"checkpoint": "b", "datasets": ["sums"]}], "labels that differ"),
    ],
)
def test_teachers_that_do_not_fit_the_data_are_refused(
    distilled: Any, tmp_path: Path, changes: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        load_recipe(
            written(distilled(), tmp_path, {"objective": {"name": "opd", "teachers": changes, "max_new_tokens": 5}})
        )


@pytest.mark.parametrize("teacher", [{"adapter": "a"}, {}])
def test_a_teacher_on_the_models_own_weights_needs_frozen_ones(distilled: Any, tmp_path: Path, teacher: Any) -> None:
    changes = {"objective": {"name": "opd", "teachers": [teacher], "max_new_tokens": 5}, "lora": {}}
    with pytest.raises(ValueError, match=r"objective\.teachers\.0 without a checkpoint .* needs lora\.targets"):
        load_recipe(written(distilled(), tmp_path, changes))


def written(recipe: Recipe, folder: Path, changes: dict[str, Any]) -> Path:
    place = folder / "recipe.yaml"
    place.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True) | changes), encoding="utf-8")
    return place


def test_the_shipped_recipe_loads() -> None:
    section = load_recipe(RECIPES / "deepseek_v4_tiny_opd.yaml").objective
    assert isinstance(section, OpdConfig)
    assert section.rewards[0].name == "verifier"
