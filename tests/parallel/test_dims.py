"""Sizes dequantize or are refused with offers that fit; every process has one place; rows can be dealt out."""

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from seektune.model.config import DeepseekV4Config
from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import ParallelDims, make_dims
from seektune.parallel.layer_split import count_stages, schedule_problem
from seektune.parallel.micro_batches import micro_batch_rows

TINY = DeepseekV4Config.preset("tiny")
WORLDS = range(1, 65)
MANY = (*WORLDS[:24], 30, 32, 36, 40, 48, 60, 63, 64)


def offers(sentence: str) -> list[dict[str, Any]]:
    """The overrides that a refusal offers, as values."""
    found = [re.findall(r"--parallel\.(\w+)=(\w+)", offer) for offer in sentence.split(", or ")]
    return [{key: None if value == "null" else int(value) for key, value in each} for each in found if each]


@pytest.mark.parametrize(
    ("architecture", "worlds"),
    [
        (None, (1, 6, 8)),
        (TINY, (4,)),
        pytest.param(None, MANY, marks=pytest.mark.slow),
        pytest.param(DeepseekV4Config.preset("flash"), (24, 64), marks=pytest.mark.slow),
    ],
    ids=["few", "tiny", "all", "flash"],
)
def test_sizes_multiply_out_or_what_is_offered_does(architecture: DeepseekV4Config | None, worlds: Sequence[int]):
    fit = 0
    for pp, ep, cp, copies, shard in product((1, 2, 3, 4), (1, 2, 4, 6, 8), (1, 2, 3), (1, 2), (None, 1, 3)):
        asked = {"pp_size": pp, "ep_size": ep, "cp_size": cp, "dp_replicate": copies, "dp_shard": shard}
        for world in worlds:
            try:
                plan = make_dims(ParallelConfig(**asked), world, architecture)
            except ValueError as error:
                check_offers(str(error), asked, world, architecture)
                continue
            fit += 1
            assert plan.pp_size * plan.cp_size * plan.data_size == world
            assert plan.stage_size % plan.ep_size == 0
            assert plan.ep_size * plan.expert_shard * plan.expert_replicate == plan.stage_size
            assert shard in (None, plan.dp_shard)
    assert fit > 10


def check_offers(said: str, asked: dict[str, Any], world: int, architecture: DeepseekV4Config | None) -> None:
    assert f"{world} processes" in said or world == 1
    offered = offers(said)
    assert offered or (architecture is not None and "nothing fits" in said), said
    for changes in offered:
        make_dims(ParallelConfig(**(asked | changes)), world, architecture)


@pytest.mark.parametrize("world", WORLDS)
def test_one_process_can_always_be_many_by_data_alone(world: int):
    plan = make_dims(ParallelConfig(), world)
    assert plan == ParallelDims(world, 1, 1, world, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "world"),
    [
        ({"pp_size": 2, "cp_size": 2, "ep_size": 2, "dp_replicate": 2}, 32),
        ({"cp_size": 2, "ep_size": 4}, 8),
        ({"dp_replicate": 4, "ep_size": 8}, 16),
        ({"pp_size": 3, "ep_size": 2}, 12),
    ],
)
def test_processes_of_one_place_differ_only_in_what_is_copied(sizes: dict[str, int], world: int):
    plan = make_dims(ParallelConfig(**sizes), world)
    places = [plan.coords(rank) for rank in range(world)]
    assert len({(p.pp, p.dp, p.cp) for p in places}) == world
    holders: dict[tuple[int, int, int], int] = {}
    for place in places:
        key = place.pp, place.ep, place.expert_shard
        holders[key] = holders.get(key, 0) + 1
    assert set(holders.values()) == {plan.expert_replicate}
    assert len(holders) == plan.pp_size * plan.ep_size * plan.expert_shard
    # the slices of a row are neighbours, and so are the processes that experts are split over
    assert [p.cp for p in places[: plan.cp_size]] == list(range(plan.cp_size))
    assert [p.ep for p in places[: plan.ep_size]] == list(range(plan.ep_size))


def test_the_published_job():
    flash = DeepseekV4Config.preset("flash")
    plan = make_dims(ParallelConfig(pp_size=4, ep_size=32), 128, flash)
    assert (plan.data_size, plan.expert_shard, plan.expert_replicate) == (32, 1, 1)
    assert micro_batch_rows(plan, ParallelConfig(pp_size=4, ep_size=32), flash, 256, 8) == 2
    assert str(plan) == "pp 4 x dp 32 x ep 32"
    assert str(make_dims(ParallelConfig(dp_replicate=4, ep_size=2), 8)) == "dp 8 (4 copies) x ep 2"


def test_experts_that_cannot_be_divided_are_refused():
    with pytest.raises(ValueError, match=r"parallel.ep_size 3 does not divide the model's \d+ experts"):
        make_dims(ParallelConfig(ep_size=3), 3, TINY)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved1f1b", "zbv", "dualpipev"])
def test_rows_can_be_dealt_out_or_the_number_that_is_offered_can(schedule: str):
    model = DeepseekV4Config.preset("flash")
    for pp, data, microbatch in product((1, 2, 3, 4), (1, 2, 4, 8), (None, 1, 3)):
        pipeline = {"schedule": schedule, "microbatch": microbatch}
        config = ParallelConfig.model_validate({"pp_size": pp, "pipeline": pipeline})
        plan = make_dims(config, pp * data, model)
        for rows, most in product((*range(1, 40), 256), (1, 2, 8)):
            try:
                size = micro_batch_rows(plan, config, model, rows, most)
            except ValueError as error:
                offered = int(re.findall(r"--batch\.global_size=(\d+)", str(error))[0])
                assert offered > rows
                micro_batch_rows(plan, config, model, offered, most)
                continue
            own = rows // data
            assert own % size == 0
            assert size <= (most if pp == 1 or microbatch is None else microbatch)
            if pp > 1:
                stages = count_stages(config.pipeline, pp, model.num_hidden_layers, model.num_nextn_predict_layers)
                assert schedule_problem(schedule, own // size, pp, stages) is None
