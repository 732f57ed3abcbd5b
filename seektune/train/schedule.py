"""Learning rate schedules: linear warm-up, then cosine or constant."""

from math import cos, pi

from seektune.train.config import ScheduleConfig


def learning_rate(step: int, steps: int, lr: float, config: ScheduleConfig) -> float:
    """The rate of `step`, counted from 1 to `steps`; `lr` is the peak.

    The warm-up's last step and the step after it run at the peak; the cosine would reach its floor one step after the
    last, so that no step is spent at a rate of zero.
    """
    warmup = config.warmup_steps
    if step <= warmup:
        return lr * step / warmup
    if config.name == "constant":
        return lr
    progress = (step - 1 - warmup) / (steps - warmup)
    floor = config.min_lr_ratio
    return lr * (floor + (1 - floor) * (1 + cos(pi * progress)) / 2)
