"""Policy-gradient losses as functions of token log-probabilities: GRPO, Dr. GRPO, DAPO, GSPO and CISPO.

`docs/grpo.md` has their formulas and sources. Shapes: N taught tokens of this device, U documents of all rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from seektune.model.head import Taught
from seektune.model.objective import LogprobObjective, ObjectiveLoss, TokenLogprobs
from seektune.sequence import ADVANTAGES, LOSS_MASK, REFERENCE, ROLLOUT_LOGPROBS, Batch, SequenceLayout

Aggregation = Literal["sequence_mean", "token_mean", "constant"]
"""Mean over answers of means over tokens, mean over tokens, or sum over answers x maximum length."""
WEIGHT = "weight"
"""The part that the others are divided by."""
CLIPPED_LOW = "clipped_low"
CLIPPED_HIGH = "clipped_high"
ROLLOUT_KL = "rollout_kl"
REFERENCE_KL = "kl"


@dataclass(frozen=True)
class PolicyGradient(LogprobObjective):
    """The clipped policy gradient of sampled answers, with an optional penalty for leaving a reference model.

    With `r = p / p_rollout`, of a token or the geometric mean over its answer, and the answer's advantage A, a token's
    loss is `-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) + beta kl`.
    """

    epsilon: float = 0.2
    epsilon_high: float = 0.2
    beta: float = 0.0
    """Weight of the estimated divergence from the reference, of each token."""
    aggregation: Aggregation = "sequence_mean"
    sequence_ratio: bool = False
    """Whether an answer's tokens share a ratio, as in GSPO."""
    clips_weight: bool = False
    """Whether only the weight of `-A log p` is clipped, from above, as in CISPO: every token keeps a gradient."""
    max_new_tokens: int = 1
    """Divisor of each answer with aggregation `constant`."""
    temperature: float = 1.0
    """That answers were sampled at; it divides the logits of all log-probabilities."""

    @property
    def part_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """As `Objective`."""
        return WEIGHT, CLIPPED_LOW, CLIPPED_HIGH, ROLLOUT_KL, *([REFERENCE_KL] if self.beta else [])

    def count(self, batch: Batch) -> float:
        """Answers, masked ones too; the tokens of unmasked ones for `token_mean`."""
        if self.aggregation == "token_mean":
            return float((batch.columns[LOSS_MASK][:, 1:] * batch.counted()).sum())
        answers = sum(len(documents_T[documents_T > 0].unique()) for documents_T in batch.documents)
        return answers * (self.max_new_tokens if self.aggregation == "constant" else 1)

    def means(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Means over unmasked tokens, weighted as the loss weights them."""
        weight = totals[WEIGHT] or 1.0
        own = {name: totals[name] / weight for name in self.part_names}
        return {name: value for name, value in {**totals, **own}.items() if name != WEIGHT}

    def loss(self, tokens: TokenLogprobs, divisor: Tensor | float) -> ObjectiveLoss:
        """As the class says; a step in which every answer is masked has a loss of 0."""
        mask_N = tokens.columns[LOSS_MASK]
        lengths_U = tokens.document_sums(mask_N).clamp(min=1)
        by_answer = self.aggregation == "sequence_mean"
        weights_N = mask_N / lengths_U[tokens.documents_N] if by_answer else mask_N
        weights_N = weights_N / max(float(divisor), 1.0)
        ratio_N = self._ratio(tokens, mask_N, lengths_U)
        losses_N = self._losses(ratio_N, tokens)
        if self.beta:
            losses_N = losses_N + self.beta * divergence(tokens.values_N, tokens.columns[REFERENCE])
        values = self._values(ratio_N, tokens)
        parts = {name: (x_N * weights_N).sum() for name, x_N in zip(self.part_names, values, strict=True)}
        return ObjectiveLoss((losses_N * weights_N).sum(), parts)

    def of_hidden(
        self, hidden_BTD: Tensor, layout: SequenceLayout, taught: Taught, divisor: Tensor | float, weight_VD: Tensor
    ) -> ObjectiveLoss:
        """As `Objective`, at the temperature."""
        return super().of_hidden(hidden_BTD / self.temperature, layout, taught, divisor, weight_VD)

    def _ratio(self, tokens: TokenLogprobs, mask_N: Tensor, lengths_U: Tensor) -> Tensor:
        """`p / p_rollout` of each token, or the geometric mean over its answer."""
        log_N = tokens.values_N - tokens.columns[ROLLOUT_LOGPROBS]
        if self.sequence_ratio:
            log_U = tokens.document_sums(log_N * mask_N) / lengths_U
            log_N = log_U[tokens.documents_N]
        return log_N.exp()

    def _losses(self, ratio_N: Tensor, tokens: TokenLogprobs) -> Tensor:
        advantages_N = tokens.columns[ADVANTAGES]
        if self.clips_weight:
            return -ratio_N.clamp(max=1 + self.epsilon_high).detach() * advantages_N * tokens.values_N
        clipped_N = ratio_N.clamp(1 - self.epsilon, 1 + self.epsilon_high)
        return -torch.min(ratio_N * advantages_N, clipped_N * advantages_N)

    @torch.no_grad()
    def _values(self, ratio_N: Tensor, tokens: TokenLogprobs) -> list[Tensor]:
        """Of each token, in the order of `part_names`."""
        advantages_N = tokens.columns[ADVANTAGES]
        low_N = (ratio_N < 1 - self.epsilon) & (advantages_N < 0) & (not self.clips_weight)
        high_N = (ratio_N > 1 + self.epsilon_high) & (advantages_N > 0)
        moved_N = divergence(tokens.columns[ROLLOUT_LOGPROBS], tokens.values_N)
        found = [torch.ones_like(ratio_N), low_N.float(), high_N.float(), moved_N]
        return found + ([divergence(tokens.values_N, tokens.columns[REFERENCE])] if self.beta else [])


def divergence(logprobs_N: Tensor, others_N: Tensor) -> Tensor:
    """An unbiased estimate of the KL divergence from a sampled token, `q / p - log(q / p) - 1`, never negative."""
    log_N = others_N - logprobs_N
    return log_N.expm1() - log_N
