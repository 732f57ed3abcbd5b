"""The held-out measurement of a run that trains on rewards: one sampled answer to each held-out prompt."""

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from seektune.data.examples import Examples
from seektune.data.held_out_loss import HeldOutLoss
from seektune.data.rollouts import Rollout
from seektune.evaluate.statistics import Estimate
from seektune.generate.engine import Decodes
from seektune.parallel.model import ParallelModel
from seektune.run.context import RunContext
from seektune.run.data import TrainData
from seektune.run.rewarded_prompt import RewardedPrompt
from seektune.run.rollouts import decode_rewarded
from seektune.run.sampled_groups import GroupSampler
from seektune.train.held_out import REWARD


def held_out_reward(
    run: RunContext, model: ParallelModel, data: TrainData, sampler: GroupSampler, alive: Callable[[], None]
) -> HeldOutLoss:
    """The mean reward of one sampled answer to each held-out prompt, and its negative as the loss; collective.

    Raises:
        RolloutError: a reward failed, on every process.
    """
    answers = held_out_answers(run, model, data, sampler, alive)
    means = {label: fmean(each.reward for each in own) for label, own in answers.items()}
    parts = reward_parts([each for own in answers.values() for each in own])
    if not data.validation_by_dataset:
        return HeldOutLoss(-parts[REWARD], parts=parts)
    losses = {label: -value for label, value in means.items()}
    return HeldOutLoss(-parts[REWARD], losses, parts, {label: {REWARD: value} for label, value in means.items()})


def held_out_answers(
    run: RunContext, model: ParallelModel, data: TrainData, sampler: GroupSampler, alive: Callable[[], None]
) -> dict[str, list[Rollout]]:
    """One sampled answer to each held-out prompt, by dataset; "" is the only one. Collective.

    Raises:
        RolloutError: a reward failed, on every process.
    """
    labels = [*data.validation_by_dataset] or [""]
    pairs = zip(labels, data.held_out, strict=True)
    tasks = {label: _tasks(examples, number) for number, (label, examples) in enumerate(pairs)}

    def progress() -> None:
        alive()
        run.stop_alone_if_signalled()

    def body(decodes: Decodes) -> dict[str, list[Rollout]]:
        return {label: sampler.rewarded(decodes, own, 0, progress) for label, own in tasks.items()}

    return decode_rewarded(run, model, body, alive)


def reward_parts(answers: Sequence[Rollout]) -> dict[str, float]:
    """The mean reward of answers with its 95 % interval."""
    mean = Estimate.of_ratio([each.reward for each in answers], [1.0] * len(answers))
    return {REWARD: mean.value, "reward_low": mean.low, "reward_high": mean.high}


def _tasks(examples: Examples, dataset: int) -> list[RewardedPrompt]:
    """The tasks of held-out rows, the shortest first."""
    numbers = np.argsort(examples.lengths, kind="stable")
    return [RewardedPrompt.of(examples.example(int(number)), dataset) for number in numbers]
