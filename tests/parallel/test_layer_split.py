"""Stages hold every layer once, schedules accept what the arithmetic says, and wait as long as it says."""

import pytest

from seektune.model.config import DeepseekV4Config
from seektune.parallel.config import PipelineConfig
from seektune.parallel.layer_split import bubble, count_stages, schedule_problem, split_layers, stages_of
from seektune.parallel.pipeline import SCHEDULES
from seektune.parallel.pipeline_order import Action, build_schedule, schedule_actions

COST = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}


@pytest.mark.parametrize("mtp", [0, 1])
@pytest.mark.parametrize("layers", [1, 4, 7, 43, 61])
def test_every_layer_is_on_one_stage_in_order(layers: int, mtp: int):
    for stages in range(1, layers + 1):
        ranges = split_layers(layers, mtp, stages)
        assert [layer for each in ranges for layer in each] == list(range(layers))
        sizes = [len(each) for each in ranges]
        sizes[-1] += mtp
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("preset", "stages", "sizes"),
    [
        ("flash", 2, [22, 21]),
        ("flash", 4, [11, 11, 11, 10]),
        ("flash", 11, [4] * 10 + [3]),
        ("flash", 43, [2] + [1] * 41 + [0]),
        ("pro", 2, [31, 30]),
        ("pro", 4, [16, 16, 15, 14]),
        ("pro", 31, [2] * 30 + [1]),
    ],
)
def test_the_released_models_divide_as_the_docs_say(preset: str, stages: int, sizes: list[int]):
    config = DeepseekV4Config.preset(preset)
    ranges = split_layers(config.num_hidden_layers, config.num_nextn_predict_layers, stages)
    assert [len(each) for each in ranges] == sizes


def test_layers_per_stage_leaves_the_rest_to_the_last():
    assert split_layers(43, 1, 4, layers_per_stage=12) == [range(0, 12), range(12, 24), range(24, 36), range(36, 43)]
    assert split_layers(7, 1, 4, layers_per_stage=2)[-1] == range(6, 7)
    config = PipelineConfig(schedule="interleaved1f1b", layers_per_stage=2)
    assert count_stages(config, 2, 7, 1) == 4
    with pytest.raises(ValueError, match="cuts 8 layers into 3 stages, but interleaved1f1b on pp_size 2 needs 4 or"):
        count_stages(PipelineConfig(schedule="interleaved1f1b", layers_per_stage=3), 2, 7, 1)
    with pytest.raises(ValueError, match="makes 8 stages of 7 layers"):
        count_stages(PipelineConfig(schedule="interleaved1f1b", layers_per_stage=1), 2, 7, 1)


@pytest.mark.parametrize("pp_size", [2, 3, 4, 8])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_stage_lives_on_one_process(schedule: str, pp_size: int):
    for per_process in (1,) if schedule == "1f1b" else (2,) if schedule in ("zbv", "dualpipev") else (2, 3):
        stages = pp_size * per_process
        held = [stages_of(process, pp_size, stages, schedule) for process in range(pp_size)]
        assert sorted(stage for each in held for stage in each) == list(range(stages))
        assert all(len(each) == per_process for each in held)
    if schedule in ("zbv", "dualpipev"):
        assert held[0] == [0, stages - 1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_fits_is_what_the_engine_accepts(schedule: str):
    for pp_size in (2, 3, 4):
        stages = pp_size * (1 if schedule == "1f1b" else 2)
        for count in range(1, 3 * stages + 1):
            fits = schedule_problem(schedule, count, pp_size, stages) is None
            try:
                build_schedule(schedule, pp_size, stages, count)
            except ValueError:
                assert not fits, (pp_size, count)
            else:
                assert fits, (pp_size, count)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bubble_is_that_of_the_engines_order_of(schedule: str):
    for pp_size in (2, 4, 8):
        for per_process in (1,) if schedule == "1f1b" else (2,) if schedule in ("zbv", "dualpipev") else (2, 3):
            stages = pp_size * per_process
            for count in (stages, 2 * stages, 5 * stages):
                waited = simulated(schedule_actions(schedule, pp_size, stages, count), stages, pp_size / stages)
                assert waited == pytest.approx([bubble(schedule, pp_size, stages, count)] * pp_size), (stages, count)


def simulated(order: dict[int, list[Action]], stages: int, length: float) -> list[float]:
    """The share of the whole time for which each process waits."""
    queues = {process: list(actions) for process, actions in order.items()}
    work = {process: length * sum(COST[kind] for kind, _, _ in queue) for process, queue in queues.items()}
    done: dict[Action, float] = {}
    clock = dict.fromkeys(queues, 0.0)
    while any(queues.values()):
        before = len(done)
        for process, queue in queues.items():
            while queue and all(need in done for need in needs(queue[0], stages)):
                kind, stage, number = queue.pop(0)
                ready = max([clock[process], *(done[need] for need in needs((kind, stage, number), stages))])
                clock[process] = ready + length * COST[kind]
                # who waits for a gradient does not care how much of the backward it was
                done[("B" if kind == "I" else kind, stage, number)] = clock[process]
        assert len(done) > before, "a deadlock"
    return [1 - work[process] / max(clock.values()) for process in order]


def needs(action: Action, stages: int) -> list[Action]:
    kind, stage, number = action
    if kind == "F":
        return [("F", stage - 1, number)] if stage else []
    if kind == "W":
        return [("B", stage, number)]
    return [("F", stage, number), *([("B", stage + 1, number)] if stage < stages - 1 else [])]
