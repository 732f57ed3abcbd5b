"""Preference losses as functions of log-probabilities of whole answers: DPO, IPO, ORPO, SimPO on pairs, and KTO.

`docs/objectives.md` has their formulas and sources. Shapes: P pairs of a chosen and a rejected answer, U answers.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AnswerLogprobs:
    """The log-probabilities of answers, each summed over its taught tokens, fp32 `[P]` each."""

    policy_P: Tensor
    """Of the model that is trained, with gradient."""
    tokens_P: Tensor
    """Number of taught tokens."""
    reference_P: Tensor | None = None
    """Of the reference model; None for losses without one."""

    def mean(self) -> Tensor:
        """The policy's, per token."""
        return self.policy_P / self.tokens_P

    def ratio(self) -> Tensor:
        """`log(policy / reference)`.

        Raises:
            ValueError: there is no reference.
        """
        if self.reference_P is None:
            raise ValueError("this loss needs the log-probabilities of a reference model; orpo and simpo need none")
        return self.policy_P - self.reference_P


@dataclass(frozen=True)
class AnswerPairs:
    """Chosen and rejected answers to the same prompts."""

    chosen: AnswerLogprobs
    rejected: AnswerLogprobs


class PairLoss(ABC):
    """A loss of each pair. An answer's reward is how good the model finds it."""

    needs_reference: ClassVar[bool] = False
    """Whether rewards are relative to a reference model."""

    @abstractmethod
    def rewards(self, answers: AnswerLogprobs) -> Tensor:
        """`[P]`, with gradient."""

    def margins(self, pairs: AnswerPairs) -> Tensor:
        """How much larger the reward of the chosen answer is, `[P]`, with gradient."""
        return self.rewards(pairs.chosen) - self.rewards(pairs.rejected)

    @abstractmethod
    def losses(self, pairs: AnswerPairs) -> Tensor:
        """`[P]`, with gradient."""


@dataclass(frozen=True)
class DPO(PairLoss):
    """`-log sigmoid(margin)`, with `margin = beta (log-ratio of chosen - log-ratio of rejected)`."""

    needs_reference: ClassVar[bool] = True

    beta: float = 0.1
    """Strength of the pull to the reference."""
    label_smoothing: float = 0.0
    """Share of the pairs whose answers are assumed to be swapped."""
    length_normalized: bool = False
    """Divide each log-ratio by the answer's number of tokens."""

    def rewards(self, answers: AnswerLogprobs) -> Tensor:
        """As `PairLoss`."""
        return self.beta * _ratio(answers, self.length_normalized)

    def losses(self, pairs: AnswerPairs) -> Tensor:
        """As `PairLoss`."""
        return _smoothed(self.margins(pairs), self.label_smoothing)


@dataclass(frozen=True)
class IPO(PairLoss):
    """`(gap - 1 / (2 beta))^2`, where the gap is that of the log-ratios per token."""

    needs_reference: ClassVar[bool] = True

    beta: float = 0.1
    """Strength of the pull to the reference: the gap is driven to `1 / (2 beta)` and not beyond."""
    length_normalized: bool = True
    """Divide each log-ratio by the answer's number of tokens."""

    def rewards(self, answers: AnswerLogprobs) -> Tensor:
        """As `PairLoss`."""
        return self.beta * _ratio(answers, self.length_normalized)

    def losses(self, pairs: AnswerPairs) -> Tensor:
        """As `PairLoss`."""
        normalized = self.length_normalized
        gap = _ratio(pairs.chosen, normalized) - _ratio(pairs.rejected, normalized)
        return (gap - 1 / (2 * self.beta)).square()


@dataclass(frozen=True)
class SimPO(PairLoss):
    """`-log sigmoid(margin - gamma)`, with `margin = beta (log p per token of chosen - of rejected)`."""

    beta: float = 2.0
    """Scale of the reward."""
    gamma: float = 1.0
    """Margin that is aimed at."""
    label_smoothing: float = 0.0
    """As in DPO."""

    def rewards(self, answers: AnswerLogprobs) -> Tensor:
        """As `PairLoss`."""
        return self.beta * answers.mean()

    def losses(self, pairs: AnswerPairs) -> Tensor:
        """As `PairLoss`."""
        return _smoothed(self.margins(pairs) - self.gamma, self.label_smoothing)


@dataclass(frozen=True)
class ORPO(PairLoss):
    """`-log p per token of chosen - beta log sigmoid(log odds of chosen - of rejected)`, odds of `p` per token."""

    beta: float = 0.1
    """Weight of the odds ratio beside the supervised loss."""

    def rewards(self, answers: AnswerLogprobs) -> Tensor:
        """As `PairLoss`."""
        return self.beta * answers.mean()

    def losses(self, pairs: AnswerPairs) -> Tensor:
        """As `PairLoss`."""
        odds = _log_odds(pairs.chosen.mean()) - _log_odds(pairs.rejected.mean())
        return supervised(pairs.chosen) - self.beta * F.logsigmoid(odds)


@dataclass(frozen=True)
class KTO:
    """`w (1 - sigmoid(beta (log-ratio - z)))` of a desirable answer, `w (1 - sigmoid(beta (z - log-ratio)))` else."""

    beta: float = 0.1
    """Strength of the pull to the reference."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def rewards(self, answers: AnswerLogprobs) -> Tensor:
        """`[U]`, with gradient."""
        return self.beta * answers.ratio()

    def losses(self, answers: AnswerLogprobs, desirable_U: Tensor, baseline: Tensor) -> Tensor:
        """`[U]`; `baseline` is the estimated divergence from the reference, `z`, through which no gradient flows."""
        reward_U = self.rewards(answers) - self.beta * baseline.detach()
        good_U = self.desirable_weight * torch.sigmoid(-reward_U)
        return torch.where(desirable_U, good_U, self.undesirable_weight * torch.sigmoid(reward_U))


def kto_baseline(mismatched: AnswerLogprobs) -> Tensor:
    """KTO's `z`: the mean log-ratio of answers to other prompts than their own, at least 0, without gradient.

    0 without any such answer.
    """
    ratios = mismatched.ratio().detach()
    return (ratios.sum() / max(len(ratios), 1)).clamp(min=0)


def supervised(chosen: AnswerLogprobs) -> Tensor:
    """The supervised (SFT) term of chosen answers, their cross-entropy per token, `[P]`."""
    return -chosen.mean()


def _ratio(answers: AnswerLogprobs, length_normalized: bool) -> Tensor:
    return answers.ratio() / answers.tokens_P if length_normalized else answers.ratio()


def _smoothed(margins: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins)


def _log_odds(logprobs: Tensor) -> Tensor:
    """`log(p / (1 - p))`; from `log p` of -1e-7 on, `1 - p` is taken as 1e-7, so that value and gradient are finite."""
    return logprobs - torch.log(-torch.expm1(logprobs.clamp(max=-1e-7)))
