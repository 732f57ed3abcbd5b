"""Planned memory of processes: equal to the dry run's, adds up to the whole model, and grows with the settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from seektune.planner.formulas import EXACT
from seektune.planner.hardware import known_gpu
from seektune.planner.memory import RankMemory, first_ranks, peak_rank, rank_memory
from seektune.planner.report import make_report
from seektune.workflows.dry_run import take_dry_run
from seektune.workflows.dry_run_rank import RankDryRun
from tests.places import FLASH, FLASH_LORA, RECIPES, ROOT, TINY

from .jobs import layout, recipe

FLASH_CHAT = RECIPES / "deepseek_v4_flash_chat.yaml"
SMALL = ("model.dtype=bf16", "batch.global_size=8", "batch.micro_size=2", "batch.length=8")


def planned_bytes(memory: RankMemory) -> dict[str, int]:
    numbers = memory.upper
    found = {name: numbers[name] for name in ("parameters", "buffers", "gradients", "moments", "master", "gathered")}
    found |= {"weights": numbers["bf16"] + numbers["fp32"] + numbers["quantized"]}
    return {**found, "whole_gradients": numbers["whole_gradients"]}


def dry_run_bytes(rank: RankDryRun) -> dict[str, int]:
    held = rank.bytes
    return {
        "parameters": rank.parameters,
        "buffers": held.buffers,
        "gradients": held.gradients,
        "moments": held.moments,
        "master": held.master,
        "gathered": rank.gathered_weights,
        "weights": held.weights,
        "whole_gradients": rank.whole_gradients,
    }


@pytest.mark.slow
def test_planned_bytes_of_the_flash_recipe_equal_the_dry_run() -> None:
    # the last 8 ranks of a stage of 32 have no rows of a hyper-connection's 24; Muon's test looks at the second stage
    ranks = [0, 56, 127]
    planned = layout(FLASH, 128)
    dry = take_dry_run(recipe(FLASH), 128, ranks)
    assert [planned_bytes(rank_memory(planned, rank)) for rank in ranks] == [dry_run_bytes(rank) for rank in dry.ranks]


@pytest.mark.slow
def test_planned_bytes_of_adapters_equal_the_dry_run() -> None:
    planned, dry = layout(FLASH_LORA, 8), take_dry_run(recipe(FLASH_LORA), 8, [0])
    assert planned_bytes(rank_memory(planned, 0)) == dry_run_bytes(dry.ranks[0])


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["dp_replicate=2", "dp_shard=1", "ep_size=2"]])
def test_planned_bytes_of_a_drafter_equal_the_dry_run(words: list[str]) -> None:
    words = ["model.preset=tiny-0731", "model.weights=some/weights", "model.quantized=true", "train.drafter=true",
             "loss.mtp_weight=0", *SMALL, *(f"parallel.{word}" for word in words)]  # fmt: skip
    planned = layout(TINY, 2, *words)
    dry = take_dry_run(recipe(TINY, *words), 2, [0, 1])
    assert [planned_bytes(rank_memory(planned, rank)) for rank in (0, 1)] == [dry_run_bytes(rank) for rank in dry.ranks]


@pytest.mark.slow
def test_planned_bytes_of_trained_indexers_equal_the_dry_run() -> None:
    asked = ["train.indexer=kl", "train.indexer_warmup=true", "loss.mtp_weight=0", "loss.bias_update_speed=0"]
    asked += [*SMALL, "batch.length=80", "parallel.cp_size=2"]
    planned, dry = layout(TINY, 2, *asked), take_dry_run(recipe(TINY, *asked), 2, [0, 1])
    assert [planned_bytes(rank_memory(planned, rank)) for rank in (0, 1)] == [dry_run_bytes(rank) for rank in dry.ranks]


@pytest.mark.slow
def test_a_released_drafter_is_trained_on_one_node_only_if_the_backbone_stays_packed() -> None:
    """As docs/drafters.md says."""
    words = ["model.quantized=true", "train.drafter=true", "parallel.pp_size=1", "parallel.ep_size=8"]
    words += ["batch.global_size=16", "batch.micro_size=2"]
    whole = ["parallel.dp_replicate=8", "parallel.dp_shard=1", "optimizer.name=adamw_8bit"]
    node = known_gpu("h100-80gb", 8)
    cut, uncut = (layout(FLASH_CHAT, 8, *words, *more) for more in ([], whole))
    held = rank_memory(cut, 0).upper
    assert 19_845_850_983 / 8 < held["trained"] < 19_845_850_983 / 7.9
    assert make_report(cut, node).verdict()[1].startswith("fits: rank 0 needs 76.0 to 78.0 GB of 80")
    assert make_report(uncut, node).verdict()[1].startswith("fits: rank 0 needs 69.2 to 71.1 GB of 80")
    assert not make_report(layout(FLASH_CHAT, 8, *words[1:]), node).verdict()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "world"),
    [
        (["dp_replicate=2", "ep_size=2"], 4),
        (["pp_size=2", "pipeline.schedule=zbv"], 2),
        (["cp_size=2", "ep_size=2"], 2),
        (["reshard=false"], 2),
        (["pp_size=2"], 2),
    ],
    ids=str,
)
def test_planned_bytes_of_small_jobs_equal_the_dry_run(words: list[str], world: int) -> None:
    asked = [*SMALL, *(f"parallel.{word}" for word in words)]
    planned, dry = layout(TINY, world, *asked), take_dry_run(recipe(TINY, *asked), world, range(world))
    assert [planned_bytes(rank_memory(planned, rank)) for rank in range(world)] == [
        dry_run_bytes(rank) for rank in dry.ranks
    ]


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "block"])
def test_planned_copies_of_rounded_weights_hold_those_of_the_dry_run(recompute: str) -> None:
    """The plan counts all of a block, of which a few per cent are not rounded."""
    asked = [*SMALL, "train.qat=released", "model.numerics=released", "parallel.ep_size=2"]
    asked.append(f"parallel.recompute={recompute}")
    dry = take_dry_run(recipe(TINY, *asked), 2, [0]).ranks[0].rounded_weights
    planned = rank_memory(layout(TINY, 2, *asked), 0).upper["rounded_weights"]
    assert 0 < dry <= planned < 1.3 * dry


def exchanged(rank: RankDryRun) -> int:
    return sum(flow.bytes for flow in rank.collectives if flow.kind == "all_to_all" and "fsdp" in flow.axis)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "world"), [(["dp_replicate=2", "ep_size=2"], 4), (["pp_size=2"], 4)], ids=str)
def test_planned_bytes_and_messages_of_muon_equal_the_dry_run(words: list[str], world: int) -> None:
    asked = [*SMALL, "optimizer.name=muon", *(f"parallel.{word}" for word in words)]
    planned, dry = layout(TINY, world, *asked), take_dry_run(recipe(TINY, *asked), world, range(world))
    plans = [rank_memory(planned, rank) for rank in range(world)]
    assert [planned_bytes(plan) for plan in plans] == [dry_run_bytes(rank) for rank in dry.ranks]
    # there and back; which process of a stage has which matrices is known to the dry run alone
    assert sum(2 * plan.upper["exchanged"] for plan in plans) == pytest.approx(sum(map(exchanged, dry.ranks)))


@pytest.mark.slow
def test_planned_bytes_of_muon_on_the_flash_recipe_equal_the_dry_run() -> None:
    planned = layout(FLASH, 128, "optimizer.name=muon")
    dry = take_dry_run(recipe(FLASH, "optimizer.name=muon"), 128, [32])
    plan = rank_memory(planned, 32)
    assert planned_bytes(plan) == dry_run_bytes(dry.ranks[0])
    adamw = rank_memory(layout(FLASH, 128), 32)
    assert plan.upper["moments"] == pytest.approx(adamw.upper["moments"] / 2, rel=1e-3)


@pytest.mark.slow
def test_shards_of_all_128_processes_add_up_to_the_model() -> None:
    planned = layout(FLASH, 128)
    total = sum(rank_memory(planned, rank).upper["parameters"] for rank in range(128))
    # docs/parallel.md: 291 B with the MTP block, counted by the model itself
    assert total == sum(weight.numel for weight in planned.job.weights.all if not weight.buffer)


@pytest.mark.slow
def test_first_process_of_a_stage_holds_the_most() -> None:
    planned = layout(FLASH, 128)
    every = [rank_memory(planned, rank) for rank in range(128)]
    firsts = first_ranks(planned)
    for process, first in enumerate(firsts):
        stage = every[32 * process : 32 * (process + 1)]
        assert first.upper["total"] == max(each.upper["total"] for each in stage)
    assert peak_rank(firsts).upper["total"] == max(each.upper["total"] for each in every)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("parallel.recompute=block", "parallel.recompute=selective"),
        ("parallel.recompute=selective", "parallel.recompute=none"),
        ("batch.length=512", "batch.length=1024"),
        ("parallel.pipeline.microbatch=1", "parallel.pipeline.microbatch=2"),
        ("optimizer.master=bf16_stochastic", "optimizer.master=fp32"),
    ],
)
def test_settings_that_need_more_memory_are_planned_with_more(less: str, more: str) -> None:
    totals = [peak_rank(first_ranks(layout(FLASH, 128, word))).upper["total"] for word in (less, more)]
    assert totals[0] < totals[1]


def test_offloaded_shards_are_not_counted_in_gpu_memory() -> None:
    here, away = (layout(TINY, 4, *SMALL, f"parallel.cpu_offload={word}") for word in ("false", "true"))
    kept, moved = rank_memory(here, 0).upper, rank_memory(away, 0).upper
    pieces = sum(kept[name] for name in EXACT if name != "buffers")
    assert pieces > 0
    assert kept["total"] - moved["total"] == moved["on_host"] == pieces
    assert make_report(away, known_gpu("h100-80gb", 4)).verdict()[1].count("of the host's memory") == 1


def test_lower_bound_is_below_upper_bound() -> None:
    for memory in first_ranks(layout(FLASH, 128)):
        assert memory.lower["total"] < memory.upper["total"]
        assert memory.lower["state"] == memory.upper["state"]


def test_early_stages_hold_more_micro_batches() -> None:
    held = [memory.lower["blocks_held"] for memory in first_ranks(layout(FLASH, 128))]
    assert held == sorted(held, reverse=True)
    assert held[0] > 3.5 * held[-1]


MEASURED = json.loads((ROOT / "bench" / "plan.json").read_text(encoding="utf-8"))
WIDE = ("model.preset=null", f"model.config={ROOT / 'bench' / 'wide.json'}", "loss.mtp_weight=0")


CASES = [*MEASURED["alone"], *MEASURED["four"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str([*case.values()][:5]))
def test_activations_are_within_10_percent_of_measurements(case: dict[str, Any]) -> None:
    """The process with the most memory decides; bench/plan.py measured tensors of CPU runs."""
    rows, words = case["rows"], case.get("parallel", [f"recompute={case.get('recompute')}"])
    world = len(case["measured"])
    asked = [f"model.dtype={case['dtype']}", f"batch.micro_size={rows}", f"batch.length={case['length']}"]
    asked += [f"batch.global_size={rows if world == 1 else 16}", *(f"parallel.{word}" for word in words)]
    planned = layout(TINY, world, *(WIDE if case["model"] == "wide" else ()), *asked)
    numbers = [rank_memory(planned, rank).lower for rank in range(world)]
    predicted = [each["activations"] + each["logits"] for each in numbers]
    most = case["measured"].index(max(case["measured"]))
    assert predicted[most] == pytest.approx(case["measured"][most], rel=0.1)


def test_measurements_cover_both_models_and_four_processes() -> None:
    assert MEASURED["device"] == "CPU"
    assert {each["model"] for each in MEASURED["alone"]} == {"tiny", "wide"}
    assert {len(each["measured"]) for each in MEASURED["four"]} == {4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "world"), [(FLASH, 128), (FLASH_LORA, 8), (FLASH_LORA.with_name(f"{FLASH_LORA.stem}_experts.yaml"), 8)]
)
def test_example_recipes_fit_the_gpus_that_they_name(path: Path, world: int) -> None:
    """At the upper bound, with full rows."""
    planned = layout(path, world)
    assert "80 GB" in path.read_text(encoding="utf-8")
    assert peak_rank(first_ranks(planned)).upper["total"] <= known_gpu("h100-80gb", world).memory
