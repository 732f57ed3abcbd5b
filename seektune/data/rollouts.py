"""Rollouts: answers that a model sampled, with their log-probabilities, rewards and advantages, and batches of them.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev, stdev
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from seektune.data.example import Example, continuation
from seektune.data.packing import collate
from seektune.sequence import ADVANTAGES, LOSS_MASK, ROLLOUT_LOGPROBS, TEACHER_NUMBER, WEIGHTS, Batch

SCALE_EPSILON = 1e-4
"""Added to a standard deviation of rewards, as TRL does."""


class RolloutError(OSError):
    """Answers could not be rewarded, on every process; the run can resume before the step."""


@dataclass(frozen=True)
class Rollout:
    """An answer that a model sampled."""

    prompt: Sequence[int]
    """Token ids."""
    answer: Sequence[int]
    """Token ids, with EOS if it ended; all responses, with results of tools between them."""
    logprobs: Sequence[float]
    """Of the answer's tokens, by the model that sampled them; 0 for those that it did not."""
    reward: float
    advantage: float = 0.0
    """How much better its reward is than that of its group."""
    truncated: bool = False
    """Whether it was cut off at the maximum number of tokens."""
    masked: bool = False
    """Whether the loss ignores its tokens."""
    dataset: int = 0
    """The place of its prompt's dataset among all."""
    taught: Sequence[bool] = ()
    """Whether each of the answer's tokens was sampled; tokens of tools' results were not. Empty if all were."""
    calls: int = 0
    """Tool calls that were run."""

    @property
    def tokens(self) -> int:
        """Number of tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    def example(self) -> Example:
        """As an example to train on."""
        found = continuation(list(self.prompt), list(self.answer), "rollout")
        return replace(found, taught=[False] * len(self.prompt) + list(self.taught)) if self.taught else found

    @property
    def sampled(self) -> int:
        """Number of sampled tokens."""
        return sum(self.taught) if self.taught else len(self.answer)


def advantages(rewards: Sequence[float], scaled: bool) -> list[float]:
    """The rewards of a group minus their mean; `scaled` also divides them by their standard deviation."""
    mean = fmean(rewards)
    spread = stdev(rewards) + SCALE_EPSILON if scaled and len(rewards) > 1 else 1.0
    return [(reward - mean) / spread for reward in rewards]


def all_equal(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group say nothing about which of its answers is better."""
    return pstdev(rewards) < 1e-9


Values: TypeAlias = Callable[[Rollout], NDArray[np.float64]]
"""The values of an answer's tokens."""

POLICY_COLUMNS: Mapping[str, Values] = {
    ADVANTAGES: lambda each: np.full(len(each.answer), each.advantage),
    ROLLOUT_LOGPROBS: lambda each: np.asarray(each.logprobs),
    LOSS_MASK: lambda each: np.full(len(each.answer), 1.0 - each.masked),
}
"""The columns of a policy gradient."""


def teacher_columns(teachers: Sequence[int], weights: Sequence[float]) -> Mapping[str, Values]:
    """The columns of on-policy distillation, from the teacher of each dataset and the weight of each teacher."""
    return {
        TEACHER_NUMBER: lambda each: np.full(len(each.answer), float(teachers[each.dataset])),
        WEIGHTS: lambda each: np.full(len(each.answer), weights[teachers[each.dataset]]),
        ROLLOUT_LOGPROBS: lambda each: np.asarray(each.logprobs),
    }


def collate_rollouts(
    rows: Sequence[Sequence[Rollout]], pad_id: int, columns: Mapping[str, Values] = POLICY_COLUMNS
) -> Batch:
    """A micro-batch `[B, T]` of rollouts, several of which may share a row, with columns for an objective."""
    batch = collate([[each.example() for each in row] for row in rows], pad_id)
    found = {name: _column(rows, batch, values) for name, values in columns.items()}
    return Batch(batch.tokens, batch.labels, batch.documents, found)


def _column(rows: Sequence[Sequence[Rollout]], batch: Batch, values: Values) -> torch.Tensor:
    """Values of each answer's tokens, fp32 `[B, T]`; 0 elsewhere."""
    found = np.zeros(batch.tokens.shape, np.float32)
    for b, row in enumerate(rows):
        start = 0
        for each in row:
            found[b, start + len(each.prompt) : start + each.tokens] = values(each)
            start += each.tokens
    return torch.from_numpy(found)
