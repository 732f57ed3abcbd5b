"""Preference objectives on batches: pairs are found by the column `pairs`, also if they share a packed row.

Shapes: N taught tokens of this device, U documents of all rows, P pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.model.objective import Objective, ObjectiveLoss, TokenLogprobs
from seektune.model.preference import AnswerLogprobs, AnswerPairs, PairLoss, supervised
from seektune.sequence import PAIRS, REFERENCE, Batch


@dataclass(frozen=True)
class Preference(Objective):
    """The mean over the pairs of a step of a pair loss and of `supervised_weight` times the chosen answers' loss."""

    pair_loss: PairLoss
    supervised_weight: float = 0.0
    part_names = (
        "preference_margin",
        "preference_accuracy",
        "chosen_logprob",
        "rejected_logprob",
        "chosen_tokens",
        "rejected_tokens",
    )

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
        margins_P = self.pair_loss.margins(pairs).detach()
        values = (
            margins_P,
            (margins_P > 0).float(),
            pairs.chosen.mean().detach(),
            pairs.rejected.mean().detach(),
            pairs.chosen.tokens_P,
            pairs.rejected.tokens_P,
        )
        parts = {name: tokens.shared(x_P.sum()) / divisor for name, x_P in zip(self.part_names, values, strict=True)}
        return ObjectiveLoss(tokens.shared(losses_P.sum()) / divisor, parts)


def pairs_of(tokens: TokenLogprobs) -> AnswerPairs:
    """The pairs of a micro-batch, in the order of their numbers; answers without their counterpart are left out."""
    lengths_U = tokens.document_sums(torch.ones_like(tokens.values_N))
    sums_U = tokens.document_sums(tokens.columns[PAIRS].to(lengths_U.dtype))
    numbers_U = (sums_U / lengths_U.clamp(min=1)).round().long()
    references = tokens.columns.get(REFERENCE)
    answers = AnswerLogprobs(
        tokens.document_sums(tokens.values_N),
        lengths_U,
        None if references is None else tokens.document_sums(references),
    )
    return AnswerPairs(_chosen_of(answers, numbers_U), _chosen_of(answers, -numbers_U))


def _chosen_of(answers: AnswerLogprobs, numbers_U: Tensor) -> AnswerLogprobs:
    """The answers with a positive number that another has with a minus, by number."""
    found = ((numbers_U > 0) & torch.isin(numbers_U, -numbers_U)).nonzero().squeeze(1)
    index_P = found[numbers_U[found].argsort()]
    reference = None if answers.reference_P is None else answers.reference_P[index_P]
    return AnswerLogprobs(answers.policy_P[index_P], answers.tokens_P[index_P], reference)
