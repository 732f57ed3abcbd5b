"""Planned memory of sampled answers: the KV caches of a process while it samples, in the place of activations."""

import pytest
import torch

from seektune.model.config import CSA, HCA, DeepseekV4Config
from seektune.model.kv_cache.cache import KVCache
from seektune.planner.hardware import known_gpu
from seektune.planner.memory import RankMemory, rank_memory
from seektune.planner.report import make_report
from seektune.run.sampled_answers import TOGETHER
from tests.places import RECIPES

from .jobs import layout

GRPO = RECIPES / "deepseek_v4_tiny_grpo.yaml"
MODEL = ("model.preset=tiny", "model.weights=null")


def planned(*words: str, world: int = 1, rank: int = 0) -> RankMemory:
    return rank_memory(layout(GRPO, world, *MODEL, *words), rank)


@pytest.mark.parametrize(
    ("words", "world", "answers", "layers"),
    [
        ((), 1, TOGETHER, [range(5)]),
        (("parallel.ep_size=2", "parallel.dp_replicate=2", "parallel.dp_shard=1"), 2, TOGETHER // 2, [range(5)]),
        (("parallel.pp_size=2", "batch.micro_size=64"), 2, TOGETHER, [range(3), range(3, 5)]),
    ],
    ids=["one process", "experts spread", "pipeline"],
)
def test_caches_are_those_of_the_answers_of_a_process(
    words: tuple[str, ...], world: int, answers: int, layers: list[range]
) -> None:
    config = DeepseekV4Config.preset("tiny")
    length = 300
    for number, held in enumerate(layers):
        rank = number * world // len(layers)
        found = planned(f"batch.length={length}", *words, world=world, rank=rank)
        cache = KVCache.of(config, held, answers, length + 1, torch.float32, torch.device("meta"))
        entries = answers * sum(config.head_dim + config.index_head_dim for each in held if config.ratio(each) == CSA)
        entries += answers * sum(config.head_dim for each in held if config.ratio(each) == HCA)
        assert 0 <= found.lower["rollout_caches"] - cache.nbytes() < entries * 4, "incomplete windows are counted"
        assert found.upper["rollout_caches"] == 2 * found.lower["rollout_caches"]


def test_caches_take_the_place_of_what_a_step_makes() -> None:
    small = planned("batch.length=64").upper
    assert small["rollout_work"] == 0 < small["rollout_caches"] < small["made"]
    large = planned("batch.length=64", "batch.micro_size=1").upper
    assert large["rollout_work"] == large["rollout_caches"] - large["made"] - large["optimizer_work"] > 0
    parts = ("state", "teacher", "nccl", "fsdp_buffers", "allocator", "context", "rollout_caches")
    assert large["total"] == pytest.approx(sum(large[name] for name in parts))


def test_a_report_says_how_many_answers_of_which_size_it_counts() -> None:
    gpu = known_gpu("h100-80gb", 1)
    (said,) = [line for line in make_report(layout(GRPO, 1, *MODEL), gpu).assumptions() if "Rollouts: " in line]
    assert f"of {TOGETHER} answers of 24 tokens" in said
    supervised = make_report(layout(RECIPES / "deepseek_v4_tiny_sums.yaml", 1), gpu)
    assert not any("Rollouts: " in line for line in supervised.assumptions())
    assert supervised.peak_rank.upper["rollout_caches"] == 0
