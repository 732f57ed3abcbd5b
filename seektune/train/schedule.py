"""Schedules of the learning rate, linear warm-up and then one of several shapes, and of the MTP loss's weight."""

from collections.abc import Callable
from math import cos, pi

from seektune.train.config import LossConfig, ScheduleConfig


def _cosine(progress: float, config: ScheduleConfig) -> float:
    return (1 + cos(pi * progress)) / 2


def _linear(progress: float, config: ScheduleConfig) -> float:
    return 1 - progress


def _wsd(progress: float, config: ScheduleConfig) -> float:
    """Warm-up, stable, decay."""
    left = min(1.0, (1 - progress) / config.decay_share)
    return left if config.decay_shape == "linear" else _cosine(1 - left, config)


SHAPES: dict[str, Callable[[float, ScheduleConfig], float]] = {"cosine": _cosine, "linear": _linear, "wsd": _wsd}
"""By `schedule.name`: the height above the floor, from 1 down to 0, by the share of steps after the warm-up."""


def learning_rate(step: int, steps: int, lr: float, config: ScheduleConfig) -> float:
    """The rate of `step`, counted from 1 to `steps`; `lr` is the peak.

    The warm-up's last step and the step after it run at the peak; a shape would reach its floor one step after the
    last, so that no step is spent at a rate of zero.
    """
    warmup = config.warmup_steps
    if step <= warmup:
        return lr * step / warmup
    if config.name == "constant":
        return lr
    progress = (step - 1 - warmup) / (steps - warmup)
    floor = config.min_lr_ratio
    return lr * (floor + (1 - floor) * SHAPES[config.name](progress, config))


def loss_of_step(step: int, steps: int, loss: LossConfig, schedule: ScheduleConfig) -> LossConfig:
    """The section `loss` with the weight of the MTP loss in `step`, counted from 1 to `steps`."""
    if loss.mtp_decay_weight is None or step <= schedule.decay_start(steps):
        return loss
    return loss.model_copy(update={"mtp_weight": loss.mtp_decay_weight})
