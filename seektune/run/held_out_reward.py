"""The held-out measurement of a run that trains on rewards: one sampled answer to each held-out prompt."""

from collections.abc import Callable
from statistics import fmean

import numpy as np

from seektune.data.examples import Examples
from seektune.data.held_out_loss import HeldOutLoss
from seektune.evaluate.statistics import Estimate
from seektune.generate.engine import Decodes
from seektune.parallel.model import ParallelModel
from seektune.run.context import RunContext
from seektune.run.data import TrainData
from seektune.run.rollouts import decode_rewarded
from seektune.run.sampled_groups import GroupSampler, RewardedPrompt


def held_out_reward(
    run: RunContext, model: ParallelModel, data: TrainData, sampler: GroupSampler, alive: Callable[[], None]
) -> HeldOutLoss:
    """The mean reward of one sampled answer to each held-out prompt, and its negative as the loss; collective.

    Raises:
        RolloutError: a reward failed, on every process.
    """
    labels = [*data.validation_by_dataset] or [""]
    tasks = {label: _tasks(examples) for label, examples in zip(labels, data.held_out, strict=True)}

    def progress() -> None:
        alive()
        run.stop_alone_if_signalled()

    def body(decodes: Decodes) -> dict[str, list[float]]:
        return {
            label: [each.reward for each in sampler.rewarded(decodes, own, 0, progress)] for label, own in tasks.items()
        }

    rewards = decode_rewarded(run, model, body, alive)
    means = {label: fmean(own) for label, own in rewards.items()}
    everything = [reward for own in rewards.values() for reward in own]
    mean = Estimate.of_ratio(everything, [1.0] * len(everything))
    parts = {"reward": mean.value, "reward_low": mean.low, "reward_high": mean.high}
    if not data.validation_by_dataset:
        return HeldOutLoss(-mean.value, parts=parts)
    losses = {label: -value for label, value in means.items()}
    return HeldOutLoss(-mean.value, losses, parts, {label: {"reward": value} for label, value in means.items()})


def _tasks(examples: Examples) -> list[RewardedPrompt]:
    """The tasks of held-out rows, the shortest first."""
    numbers = np.argsort(examples.lengths, kind="stable")
    return [RewardedPrompt.of(examples.example(int(number))) for number in numbers]
