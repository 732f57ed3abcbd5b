"""Preference objectives on batches: answers are found by the column `pairs`, also if they share a packed row.

Shapes: N taught tokens of this device, U documents of all rows, P pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from seektune.model.objective import LogprobObjective, ObjectiveLoss, TokenLogprobs
from seektune.model.preference import KTO, AnswerLogprobs, AnswerPairs, PairLoss, kto_baseline, supervised
from seektune.sequence import PAIRS, REFERENCE, Batch

ACCURACY = "reward_accuracy"
KL = "kl"
"""Names of parts."""


@dataclass(frozen=True)
class Preference(LogprobObjective):
    """The mean over the pairs of a step of a pair loss and of `supervised_weight` times the chosen answers' loss."""

    pair_loss: PairLoss
    supervised_weight: float = 0.0
    counts_examples: ClassVar[bool] = True  # type: ignore[misc]

    @property
    def part_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """As `Objective`."""
        answers = [f"{role}_{what}" for what in ("reward", "logprob", "tokens") for role in ("chosen", "rejected")]
        return "reward_margin", ACCURACY, *answers, *([KL] if self.pair_loss.needs_reference else [])

    def count(self, batch: Batch) -> float:
        """Pairs of which something is taught in both answers."""
        numbers = batch.columns[PAIRS][:, 1:][batch.counted()].unique()
        return int(torch.isin(numbers[numbers > 0], -numbers).sum())

    def loss(self, tokens: TokenLogprobs, divisor: Tensor | float) -> ObjectiveLoss:
        """As the class says; the parts are means over pairs, log-probabilities are per token."""
        pairs = pairs_of(tokens)
        losses_P = self.pair_loss.losses(pairs)
        if self.supervised_weight:
            losses_P = losses_P + self.supervised_weight * supervised(pairs.chosen)
        values = self._values(pairs)
        parts = {name: tokens.shared(x_P.sum()) / divisor for name, x_P in zip(self.part_names, values, strict=True)}
        return ObjectiveLoss(tokens.shared(losses_P.sum()) / divisor, parts)

    @torch.no_grad()
    def _values(self, pairs: AnswerPairs) -> list[Tensor]:
        """Of each pair, in the order of `part_names`."""
        both = (pairs.chosen, pairs.rejected)
        margins_P = self.pair_loss.margins(pairs)
        found = [margins_P, (margins_P > 0).float(), *map(self.pair_loss.rewards, both)]
        found += [*(answers.mean() for answers in both), *(answers.tokens_P for answers in both)]
        if self.pair_loss.needs_reference:
            found.append(torch.stack([answers.ratio() / answers.tokens_P for answers in both]).mean(dim=0))
        return found


@dataclass(frozen=True)
class AnswerFeedback(LogprobObjective):
    """The mean over the answers of a step of KTO's loss; its baseline is that of the micro-batch.

    Answers to other prompts than their own, which the baseline is estimated with, have the number 0.
    """

    kto: KTO
    counts_examples: ClassVar[bool] = True  # type: ignore[misc]
    part_names = ("chosen_share", ACCURACY, "chosen_reward", "rejected_reward", "chosen_tokens", "rejected_tokens", KL)

    def count(self, batch: Batch) -> float:
        """Answers of which something is taught, without mismatched ones."""
        numbers = batch.columns[PAIRS][:, 1:][batch.counted()].unique()
        return int((numbers != 0).sum())

    def means(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Rewards and tokens are means over the answers of their role; 0 in a step without one."""
        shares = {"chosen": totals["chosen_share"], "rejected": 1 - totals["chosen_share"]}
        found = dict(totals)
        for role, share in shares.items():
            for name in (f"{role}_reward", f"{role}_tokens"):
                found[name] = totals[name] / share if share > 1e-6 else 0.0
        return found

    def loss(self, tokens: TokenLogprobs, divisor: Tensor | float) -> ObjectiveLoss:
        """As the class says."""
        found = answers_of(tokens)
        taught_U = found.logprobs.tokens_P > 0
        own = _some(found.logprobs, (taught_U & (found.numbers_U != 0)).nonzero().squeeze(1))
        chosen_U = found.numbers_U[taught_U & (found.numbers_U != 0)] > 0
        mismatched = _some(found.logprobs, (taught_U & (found.numbers_U == 0)).nonzero().squeeze(1))
        baseline = kto_baseline(mismatched)
        loss = tokens.shared(self.kto.losses(own, chosen_U, baseline).sum()) / divisor
        values = self._values(own, chosen_U, baseline)
        parts = {name: tokens.shared(x_U.sum()) / divisor for name, x_U in zip(self.part_names, values, strict=True)}
        return ObjectiveLoss(loss, parts)

    @torch.no_grad()
    def _values(self, own: AnswerLogprobs, chosen_U: Tensor, baseline: Tensor) -> list[Tensor]:
        """Of each answer, in the order of `part_names`."""
        rewards_U = self.kto.rewards(own)
        right_U = (rewards_U > self.kto.beta * baseline) == chosen_U
        split = [x_U * role_U for x_U in (rewards_U, own.tokens_P) for role_U in (chosen_U, ~chosen_U)]
        return [chosen_U.float(), right_U.float(), *split, baseline.expand(len(chosen_U))]


class Answers(NamedTuple):
    """The documents of a micro-batch as answers."""

    logprobs: AnswerLogprobs
    """`[U]` each."""
    numbers_U: Tensor
    """As in the column `pairs`, int64."""


def answers_of(tokens: TokenLogprobs) -> Answers:
    """The answers of a micro-batch, one of each document; those of padding have no tokens."""
    lengths_U = tokens.document_sums(torch.ones_like(tokens.values_N))
    sums_U = tokens.document_sums(tokens.columns[PAIRS].to(lengths_U.dtype))
    numbers_U = (sums_U / lengths_U.clamp(min=1)).round().long()
    references = tokens.columns.get(REFERENCE)
    policy_U = tokens.document_sums(tokens.values_N)
    reference_U = None if references is None else tokens.document_sums(references)
    return Answers(AnswerLogprobs(policy_U, lengths_U, reference_U), numbers_U)


def pairs_of(tokens: TokenLogprobs) -> AnswerPairs:
    """The pairs of a micro-batch, in the order of their numbers; answers without their counterpart are left out."""
    answers = answers_of(tokens)
    return AnswerPairs(
        _chosen_of(answers.logprobs, answers.numbers_U), _chosen_of(answers.logprobs, -answers.numbers_U)
    )


def _chosen_of(answers: AnswerLogprobs, numbers_U: Tensor) -> AnswerLogprobs:
    """The answers with a positive number that another has with a minus, by number."""
    found = ((numbers_U > 0) & torch.isin(numbers_U, -numbers_U)).nonzero().squeeze(1)
    return _some(answers, found[numbers_U[found].argsort()])


def _some(answers: AnswerLogprobs, index_P: Tensor) -> AnswerLogprobs:
    reference = None if answers.reference_P is None else answers.reference_P[index_P]
    return AnswerLogprobs(answers.policy_P[index_P], answers.tokens_P[index_P], reference)
