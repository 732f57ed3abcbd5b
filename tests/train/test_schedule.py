from itertools import pairwise
from math import cos, pi

import pytest

from seektune.train.config import LossConfig, ScheduleConfig
from seektune.train.schedule import SHAPES, learning_rate, loss_of_step


def rates(steps: int, **config) -> list[float]:
    return [learning_rate(step, steps, 2.0, ScheduleConfig(**config)) for step in range(1, steps + 1)]


def test_warm_up_is_linear_and_reaches_the_peak():
    assert rates(10, warmup_steps=4)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_cosine_falls_to_its_floor_without_a_step_at_zero():
    every = rates(100, warmup_steps=0, min_lr_ratio=0.0)
    assert every[0] == 2.0
    assert every[50] == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in pairwise(every))
    assert 0 < every[-1] < 2e-3
    assert rates(100, min_lr_ratio=0.25)[-1] == pytest.approx(0.5, abs=2e-3)


def test_linear_falls_by_equal_steps():
    assert rates(6, name="linear", warmup_steps=2, min_lr_ratio=0.0)[2:] == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert rates(4, name="linear", min_lr_ratio=0.5) == pytest.approx([2.0, 1.75, 1.5, 1.25])


def test_wsd_stays_at_the_peak_and_falls_in_its_last_share():
    every = rates(22, name="wsd", warmup_steps=2, decay_share=0.2, min_lr_ratio=0.1)
    assert every[:18] == [1.0, *[2.0] * 17]
    assert every[18:] == pytest.approx([2.0, 1.55, 1.1, 0.65])


def test_wsd_may_fall_along_a_half_cosine():
    every = rates(22, name="wsd", warmup_steps=2, decay_share=0.2, min_lr_ratio=0.1, decay_shape="cosine")
    assert every[:18] == [1.0, *[2.0] * 17]
    floor = 0.2
    assert every[18:] == pytest.approx([floor + 1.8 * (1 + cos(pi * part)) / 2 for part in (0, 0.25, 0.5, 0.75)])


@pytest.mark.parametrize(
    "schedule",
    [
        ScheduleConfig(name="wsd", warmup_steps=2, decay_share=0.2),
        ScheduleConfig(name="wsd", warmup_steps=2, decay_share=0.3, decay_shape="cosine"),
        ScheduleConfig(name="cosine", warmup_steps=3),
        ScheduleConfig(name="linear"),
        ScheduleConfig(name="constant", warmup_steps=2),
    ],
)
def test_the_weight_of_the_mtp_loss_changes_where_the_rate_begins_to_fall(schedule: ScheduleConfig):
    loss = LossConfig(mtp_weight=0.3, mtp_decay_weight=0.1)
    found = [learning_rate(step, 22, 2.0, schedule) for step in range(1, 23)]
    weights = [loss_of_step(step, 22, loss, schedule).mtp_weight for step in range(1, 23)]
    falls = [step > schedule.warmup_steps and rate < 2 - 1e-9 for step, rate in enumerate(found, start=1)]
    assert weights == [0.1 if fallen else 0.3 for fallen in falls]
    assert loss_of_step(22, 22, LossConfig(mtp_weight=0.3), schedule).mtp_weight == 0.3


def test_a_later_weight_of_the_mtp_loss_needs_a_first_one():
    with pytest.raises(ValueError, match="mtp_decay_weight needs an mtp_weight above 0"):
        LossConfig(mtp_weight=0, mtp_decay_weight=0.1)


def test_every_schedule_has_a_shape_or_none():
    names = ScheduleConfig.model_json_schema()["properties"]["name"]["enum"]
    assert set(names) == SHAPES.keys() | {"constant"}


def test_constant_stays():
    assert rates(5, name="constant", warmup_steps=1) == [2.0] * 5


def test_a_run_that_is_all_warm_up():
    assert rates(2, warmup_steps=4) == [0.5, 1.0]
