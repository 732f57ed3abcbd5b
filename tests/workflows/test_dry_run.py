"""Dry runs: the numbers are those of real processes, of the whole model, and of any layout."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.lowbit import value_counts
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.quantized import quantize_modules
from seektune.parallel.dims import make_dims
from seektune.parallel.mesh import Mesh
from seektune.parallel.simulate.comm_trace import CommTrace, Flow
from seektune.parallel.simulate.fake_backend import BETWEEN
from seektune.planner.report import FROZEN_MODELS
from seektune.recipe.load import load_recipe
from seektune.recipe.recipe import Recipe
from seektune.run.build import build_model
from seektune.train.optim.build import build_optimizer
from seektune.train.step import train_step
from seektune.workflows.dry_run import DryRun, dry_run, take_dry_run
from seektune.workflows.dry_run_rank import DryStep
from tests.patience import HUNG
from tests.places import FLASH, FLASH_LORA, RECIPES, ROOT, TINY, TINY_LORA
from tests.run_cli import CODE

from ..distributed.workers import run_workers

SMALL = ["--model.dtype=bf16", "--batch.global_size=8", "--batch.micro_size=2", "--batch.length=8"]


def recipe(*words: str) -> Recipe:
    return load_recipe(TINY, [*SMALL, *(f"--parallel.{word}" for word in words)])


def adapted(*words: str) -> Recipe:
    return load_recipe(TINY_LORA, [*SMALL, *words])


def every_rank(*words: str, world: int) -> DryRun:
    return take_dry_run(recipe(*words), world, range(world))


class Listening(TorchDispatchMode):
    """Records operations between real processes."""

    def __init__(self, traffic: CommTrace):
        super().__init__()
        self._traffic = traffic

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in BETWEEN:
            self._traffic.record(func, args)
        return func(*args, **(kwargs or {}))


def real_numbers(asked: Recipe, step: DryStep) -> tuple[dict[str, int], list[Flow]]:
    """In a worker: what a real step leaves and sends."""
    config = asked.model.architecture()
    assert config is not None
    mesh = Mesh.of(make_dims(asked.parallel, dist.get_world_size(), config), torch.device("cpu"))
    model = build_model(asked, config, mesh, with_weights=True)
    optimizer = build_optimizer(model, asked.optimizer, 0, mesh)
    traffic = CommTrace(mesh.axes)
    with Listening(traffic):
        train_step(model, optimizer, step.data(mesh.dims.data_size, "cpu"), 1, 1e-5, asked.loss, 1.0)
    names = dict(model.named_parameters())
    pieces = {name: piece.tensor for name, piece in model.shards().items()}
    states = list(optimizer.state.values())
    numbers = {
        "parameters": sum(value_counts({name: x for name, x in pieces.items() if name in names}).values()),
        "weights": sum(x.nbytes for name, x in pieces.items() if name in names),
        "buffers": sum(x.nbytes for name, x in pieces.items() if name not in names),
        "moments": sum(x.nbytes for state in states for key, x in state.items() if key not in ("step", "master")),
        "master": sum(state["master"].nbytes for state in states if "master" in state),
    }
    return numbers, traffic.flows()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "words"),
    [
        (4, ["dp_replicate=2", "ep_size=2", "recompute=selective"]),
        (4, ["pp_size=2", "ep_size=2"]),
        (2, ["pp_size=2", "pipeline.schedule=zbv"]),
        (4, ["cp_size=2", "ep_size=2", "recompute=block"]),
    ],
    ids=str,
)
def test_the_numbers_are_those_of_real_processes(world: int, words: list[str]) -> None:
    same_numbers(recipe(*words), world)


@pytest.mark.slow
def test_so_they_are_with_muon_whose_matrices_travel() -> None:
    asked = load_recipe(TINY, [*SMALL, "--optimizer.name=muon", "--parallel.dp_replicate=2", "--parallel.ep_size=2"])
    same_numbers(asked)
    flows = {(flow.kind, flow.axis) for flow in take_dry_run(asked, 4, [0]).ranks[0].collectives}
    assert ("broadcast", "fsdp copies") in flows
    assert ("all_to_all", "fsdp") in flows


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--parallel.ep_size=4", "--parallel.dp_replicate=4", "--lora.shared_a=true"],
        ["--parallel.pp_size=2", "--parallel.ep_size=2", "--model.quantized=false"],
        ["--parallel.ep_size=2"],
    ],
    ids=" ".join,
)
def test_so_they_are_with_adapters_on_frozen_bytes(words: list[str]) -> None:
    same_numbers(adapted(*words))


def same_numbers(asked: Recipe, world: int = 4) -> None:
    dry = take_dry_run(asked, world, range(world))
    for rehearsed, (numbers, flows) in zip(dry.ranks, run_workers(world, real_numbers, asked, dry.step), strict=True):
        assert numbers == {"parameters": rehearsed.parameters} | {
            name: number for name, number in rehearsed.to_dict()["bytes"].items() if name in numbers
        }
        assert _counts(rehearsed.collectives) == _counts(flows)
        # what travels to experts depends on their choice, all else does not
        assert _payloads(rehearsed.collectives) == _payloads(flows)


def _counts(flows: Iterable[Flow]) -> dict[tuple[str, str], int]:
    return {(flow.kind, flow.axis): flow.count for flow in flows}


def _payloads(flows: Iterable[Flow]) -> dict[tuple[str, str], int]:
    return {(flow.kind, flow.axis): flow.bytes for flow in flows if flow.axis != "ep"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["pp_size=2"],
        pytest.param(["ep_size=2"], marks=pytest.mark.slow),
        pytest.param(["cp_size=2"], marks=pytest.mark.slow),
    ],
)
def test_the_pieces_of_all_processes_are_the_whole_model(words: list[str]) -> None:
    dry = every_rank(*words, world=4)
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"), device="meta", dtype=torch.bfloat16)
    parameters = list(model.parameters())
    assert sum(rank.parameters for rank in dry.ranks) == sum(p.numel() for p in parameters)
    assert sum(rank.bytes.weights for rank in dry.ranks) == sum(p.nbytes for p in parameters)
    trained = [p for p in parameters if p.requires_grad]
    assert sum(rank.bytes.moments for rank in dry.ranks) == sum(8 * p.numel() for p in trained)
    masters = sum(4 * p.numel() for p in trained if p.dtype == torch.bfloat16)
    assert sum(rank.bytes.master for rank in dry.ranks) == masters
    assert sum(rank.bytes.gradients for rank in dry.ranks) == sum(p.nbytes for p in trained)


@pytest.mark.slow
def test_a_pipeline_of_two_sends_what_the_streams_are() -> None:
    dry = take_dry_run(recipe("pp_size=2"), 2, [])
    assert [rank.rank for rank in dry.ranks] == [0, 1]
    assert dry.step == DryStep(micro_batches=4, rows=2, length=8)
    config = DeepseekV4Config.preset("tiny")
    streams = 4 * 2 * 8 * (config.hc_mult + 1) * config.hidden_size * 2
    for rank in dry.ranks:
        (sent,) = [flow for flow in rank.collectives if flow.kind == "send"]
        assert (sent.axis, sent.count, sent.bytes, sent.sent) == ("pp", 4, streams, streams)
    first, last = (rank.stages[0] for rank in dry.ranks)
    assert (first.embedding, first.head, first.mtp) == (True, False, False)
    assert (last.embedding, last.head, last.mtp) == (False, True, True)
    assert first.layers + last.layers == tuple(range(config.num_hidden_layers))


@pytest.mark.slow
def test_one_process_rehearses_alone() -> None:
    (alone,) = take_dry_run(recipe(), 1, []).ranks
    assert alone.collectives == ()
    assert (alone.gathered_weights, alone.whole_gradients) == (0, 0)
    # no FSDP2 rounds them: small gradients add up in fp32
    assert alone.bytes.gradients == 4 * alone.trainable


def test_weights_on_the_hub_need_a_preset_beside_them() -> None:
    asked = load_recipe(FLASH, ["--model.preset=null"])
    with pytest.raises(ValueError, match=r"--model\.preset=flash or pro"):
        take_dry_run(asked, 128, [])


def test_a_rank_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="--ranks names 2, but 2 processes count from 0 to 1"):
        take_dry_run(recipe("pp_size=2"), 2, [2])


@pytest.mark.slow
def test_it_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(recipe("pp_size=2"), 4, [3], as_json=False)
    shown = capsys.readouterr().out
    assert shown.startswith("4 processes: pp 2 x dp 2\npipeline: 1f1b, 2 stages, each process waits ")
    assert "\nrank 3 (pp 1, dp 1, cp 0, ep 0, expert_shard 1)\n  stage 1: layers " in shown


@pytest.mark.slow
def test_the_door_prints_json() -> None:
    # a process of its own: torch reads how much it logs when it is first imported
    words = ["train", str(TINY), *SMALL, "--parallel.pp_size=2", "--dry-run", "--world-size=4", "--ranks=3", "--json"]
    command = [sys.executable, "-c", CODE, *words]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=HUNG)
    assert (answer.returncode, answer.stderr) == (0, "")
    found = json.loads(answer.stdout)
    assert (found["world"], found["pipeline"]["stages"], [rank["rank"] for rank in found["ranks"]]) == (4, 2, [3])
    assert found["ranks"][0]["bytes"]["optimizer"] > 0


@pytest.mark.slow
def test_frozen_weights_of_a_job_are_the_bytes_of_the_release() -> None:
    """Two processes, each with half the experts and all else."""
    words = ["--parallel.ep_size=2", "--parallel.dp_replicate=2", "--lora.targets=[attn]", "--model.dtype=bf16"]
    dry = take_dry_run(adapted(*words), 2, [])
    (rank,) = dry.ranks
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"), device="meta", dtype=torch.bfloat16)
    quantize_modules(model, FORMATS["released"].kind)
    experts = {name: x.nbytes for name, x in model.named_parameters() if ".experts." in name}
    whole = sum(x.nbytes for x in model.parameters())
    assert rank.bytes.experts == sum(experts.values()) / 2
    assert rank.bytes.frozen == whole - rank.bytes.experts
    # a byte of FP4 is two parameters, a scale is none
    plain = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"), device="meta")
    values = {name: x.numel() for name, x in plain.named_parameters()}
    routed = sum(number for name, number in values.items() if ".experts." in name and "shared" not in name)
    assert rank.expert_parameters == routed / 2
    assert rank.parameters - rank.trainable == sum(values.values()) - routed / 2
    assert rank.bytes.weights - rank.bytes.frozen == 4 * rank.trainable
    assert rank.bytes.moments == 8 * rank.trainable
    assert 0 < rank.gathered_weights < 4 * rank.trainable, "nothing frozen is copied"


@pytest.mark.slow
def test_the_low_bit_release_fits_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    """Experts of FP4 divide by eight, all else is whole: by the sizes in the headers of the released files."""
    dry_run(load_recipe(FLASH_LORA), 8, [7], as_json=True)
    (rank,) = json.loads(capsys.readouterr().out)["ranks"]
    held = rank["bytes"]
    assert 18.4e9 < held["experts"] < 18.9e9
    assert 8e9 < held["frozen"] - held["experts"] < 9.1e9
    assert held["total"] < 32e9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "words"),
    [
        (TINY, []),
        (TINY, ["--objective.name=distill", "--objective.teacher=runs/larger/model"]),
        (RECIPES / "deepseek_v4_tiny_dpo.yaml", ["--objective.reference_checkpoint=runs/before/model"]),
    ],
)
def test_it_says_that_it_leaves_out_other_checkpoints(
    path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run(load_recipe(path, [*SMALL, *words]), 1, [0], as_json=False)
    assert (FROZEN_MODELS in capsys.readouterr().out) == bool(words)
