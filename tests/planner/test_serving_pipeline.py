"""`plan --serve --pp`: each stage's bytes are those of decoding over a pipeline, and its speed is that of its steps."""

from dataclasses import replace

import pytest
import torch

from seektune.cli.plan import plan
from seektune.generate.cache_limit import CacheUse
from seektune.generate.capacity import BatchRows
from seektune.generate.processes import decode_dims
from seektune.generate.session import LoadOptions
from seektune.planner.hardware import known_gpu
from seektune.planner.serving import ServingPlan
from seektune.workflows.dry_run_decode import Placement, placed
from seektune.workflows.known_architecture import known_architecture
from seektune.workflows.plan_serving import ServingOptions, take_plan

LONGEST = 4000


def planned(gpus: int, memory: int = 0, **asked: int | bool) -> ServingPlan:
    """Of the tiny model in fp32."""
    cluster = known_gpu("h100-80gb", gpus)
    cluster = replace(cluster, memory=memory or cluster.memory)
    return take_plan("tiny", cluster, ServingOptions(**asked, max_model_len=LONGEST), torch.float32)


def dry_run(world: int, pp_size: int, rank: int, quantized: bool, free: int) -> Placement:
    """What `generate --dry-run --world-size` counts on a rank with `free` bytes for caches."""
    config, kind_of = known_architecture("tiny")
    dims = decode_dims(world, None, pp_size, config)
    reading = LoadOptions("fp32", quantized=quantized)
    held = placed(config, kind_of if quantized else None, reading, dims, rank, 0, CacheUse(longest=LONGEST))
    return replace(held, room=replace(held.room, free=free))


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(("world", "pp_size"), [(2, 2), (4, 2), (3, 3)])
def test_the_bytes_of_each_stage_are_those_of_a_dry_run(world: int, pp_size: int, quantized: bool) -> None:
    found = planned(world, pp_size=pp_size, quantized=quantized)
    for number, stage in enumerate(found.stages):
        here = dry_run(world, pp_size, number * world // pp_size, quantized, 0)
        assert stage.weight_bytes == here.parts.total()
        assert list(stage.model.layers) == here.layers
        assert stage.model.token_bytes == here.room.size.per_token
        for tokens in (5, 700, LONGEST):
            own = here.room.left([BatchRows(1, tokens)])
            assert -own == 2 * stage.model.row_bytes(tokens)


def test_as_many_sequences_fit_as_the_controller_admits() -> None:
    """In groups as equal as possible, each stage has its caches, and the largest of them twice."""
    for memory in (3_250_000_000, 3_300_000_000, 3_400_000_000):
        found = planned(3, memory, pp_size=3)
        count = found.on_each(LONGEST)
        for stage in found.stages:
            room = dry_run(3, 3, found.stages.index(stage), quantized=False, free=int(stage.free)).room
            assert room.left(groups(stage.sequences(LONGEST))) >= 0 > room.left(groups(stage.sequences(LONGEST) + 1))
        assert count == min(stage.sequences(LONGEST) for stage in found.stages)


def groups(sequences: int) -> list[BatchRows]:
    return [BatchRows(sequences // 3 + (group < sequences % 3), LONGEST) for group in range(3)]


def test_a_token_takes_a_step_of_each_stage() -> None:
    """One sequence passes the stages in turn; as many as stages keep all of them busy."""
    found = planned(2, pp_size=2)
    first, last = found.stages
    assert found.rates(1, 100)[1] == pytest.approx(1 / (first.fast(1, 100) + last.fast(1, 100)))
    assert found.rates(1, 100)[0] == pytest.approx(1 / (first.slow(1, 100) + last.slow(1, 100)))
    assert found.rates(2, 100)[1] == pytest.approx(1 / max(first.fast(1, 100), last.fast(1, 100)))
    assert found.rates(8, 100)[1] == pytest.approx(8 / (2 * max(first.fast(4, 100), last.fast(4, 100))))


def test_messages_between_stages_cost_time() -> None:
    """Those of the first stage, which sends; between nodes they take longer."""
    first, last = planned(2, pp_size=2).stages
    alone = replace(first, model=replace(first.model, sends=False))
    streams = 3 * first.model.config.hc_mult * first.model.config.hidden_size * 4
    assert first.fast(3, 100) - alone.fast(3, 100) == pytest.approx(streams / first.cluster.link)
    assert first.slow(3, 100) - alone.slow(3, 100) > first.cluster.factors["latency_s"]
    apart = replace(first, cluster=replace(first.cluster, gpus_per_node=1))
    assert apart.fast(3, 100) > first.fast(3, 100)
    assert not last.model.sends


def test_the_command_shows_each_stage_and_refuses_what_does_not_divide(capsys: pytest.CaptureFixture[str]) -> None:
    four = known_gpu("h100-80gb", 4)
    assert plan(serve="tiny", gpus=4, pp=2)() == 0
    shown = capsys.readouterr().out
    assert "layers over 2 stages, in each stage experts over 2 processes" in shown
    assert shown.count("a process of layers") == 2
    assert "a pipeline has no prefix cache" in shown
    with pytest.raises(ValueError, match=r"--pp=3 must divide the 4 processes"):
        take_plan("tiny", four, ServingOptions(pp_size=3))
