"""Objectives: a loss, and parts of it by name, as a function of the log-probabilities of taught tokens.

Shapes: B rows, T tokens, N taught tokens of this device, U documents of all rows, D width, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from seektune.kernels import linear_z_loss, token_logprobs
from seektune.model.head import Taught, token_loss
from seektune.sequence import IGNORE_INDEX, WEIGHTS, Batch, SequenceLayout


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of the taught tokens of this device, and what an objective may read beside them."""

    values_N: Tensor
    """fp32, with gradient."""
    columns: Mapping[str, Tensor]
    """Of the batch, at these tokens, `[N]` each."""
    documents_N: Tensor
    """The document of each token, numbered from 0 over all rows."""
    documents: int
    """Their number."""
    layout: SequenceLayout

    @classmethod
    def of(cls, hidden_BTD: Tensor, layout: SequenceLayout, taught: Taught, weight_VD: Tensor) -> "TokenLogprobs":
        """From the head's input and its weight; the logits of all tokens never exist at once."""
        tokens = taught.tokens(hidden_BTD, layout, steps=1)
        numbers_BT, documents = layout.numbered()
        documents_N, _ = layout.taught(numbers_BT, layout.targets(taught.labels_BT, steps=1))
        values_N = token_logprobs(tokens.hidden_ND, weight_VD, tokens.targets_N)
        return cls(values_N, tokens.columns, documents_N, documents, layout)

    @classmethod
    def given(cls, values_BT: Tensor, batch: Batch) -> "TokenLogprobs":
        """Of whole rows, from values at the positions that predict the tokens, `[B, T]`."""
        layout = SequenceLayout.from_documents(batch.documents)
        numbers_BT, documents = layout.numbered()
        tokens = Taught(batch.labels, 1.0, batch.columns).tokens(values_BT, layout, steps=1)
        documents_N, _ = layout.taught(numbers_BT, layout.targets(batch.labels, steps=1))
        return cls(tokens.hidden_ND, tokens.columns, documents_N, documents, layout)

    def document_sums(self, x_N: Tensor) -> Tensor:
        """The sum of values over the taught tokens of each document, `[U]`, with gradient.

        Each padding token is a document, whose sum is 0. Devices that share rows get the same sums: what an objective
        makes of them goes through `shared`.
        """
        sums_U = x_N.new_zeros(self.documents).index_add(0, self.documents_N, x_N)
        return self.layout.total(sums_U)

    def shared(self, x: Tensor) -> Tensor:
        """This device's equal share of a value that all devices with the same rows have computed."""
        return x / self.layout.shares


def token_logprobs_of(hidden_BTD: Tensor, layout: SequenceLayout, labels_BT: Tensor, weight_VD: Tensor) -> Tensor:
    """Log-probabilities of the taught tokens at the positions that predict them, fp32 `[B, T]`; 0 elsewhere."""
    targets_BT = layout.targets(labels_BT, steps=1)
    hidden_ND, targets_N = layout.taught(hidden_BTD, targets_BT)
    values_N = token_logprobs(hidden_ND, weight_VD, targets_N).float()
    return values_N.new_zeros(targets_BT.shape).masked_scatter(targets_BT != IGNORE_INDEX, values_N)


@dataclass(frozen=True)
class ObjectiveLoss:
    """This device's share of a micro-batch's loss; all shares of a step sum to the step's."""

    loss: Tensor
    """With gradient."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars for the metrics, by the objective's `part_names`; their shares sum as the loss does."""


class Objective(ABC):
    """What a model is trained for. Losses and parts are divided once, by the count of the whole step."""

    part_names: tuple[str, ...] = ()
    """Names of the parts in addition to `loss`, the same on every process."""
    counts_examples: bool = False
    """Whether what it counts are the examples of a step, whose number loaders know without reading them."""

    @abstractmethod
    def count(self, batch: Batch) -> float:
        """A batch's part of what the loss of a step is divided by: tokens, weights, documents or pairs."""

    def means(self, totals: Mapping[str, float]) -> dict[str, float]:
        """The parts as they are logged, from their sums over a whole step."""
        return dict(totals)

    @abstractmethod
    def of_hidden(
        self, hidden_BTD: Tensor, layout: SequenceLayout, taught: Taught, divisor: Tensor | float, weight_VD: Tensor
    ) -> ObjectiveLoss:
        """The loss from the head's input over `divisor`, the count of the whole step."""


class LogprobObjective(Objective):
    """An objective that is a function of the log-probabilities of taught tokens."""

    @abstractmethod
    def loss(self, tokens: TokenLogprobs, divisor: Tensor | float) -> ObjectiveLoss:
        """The loss over `divisor`, the count of the whole step; its gradient flows into `tokens.values_N`."""

    def of_hidden(
        self, hidden_BTD: Tensor, layout: SequenceLayout, taught: Taught, divisor: Tensor | float, weight_VD: Tensor
    ) -> ObjectiveLoss:
        """As `Objective`; one may have a faster way than `token_logprobs`."""
        return self.loss(TokenLogprobs.of(hidden_BTD, layout, taught, weight_VD), divisor)


class CrossEntropy(LogprobObjective):
    """Next-token cross-entropy: `-sum_t w_t log p_t / sum_t w_t` over the taught tokens; `w_t` is 1 without weights.

    With `z_weight`, training adds `z_weight * log(Z_t) ** 2` to each term, where `Z_t` sums the exponentials of the
    logits (the z-loss of Chowdhery et al. 2022, arXiv 2204.02311): the gradient has both, the value of the loss stays
    the cross-entropy, and the part `z_loss` is the mean square.
    """

    def __init__(self, z_weight: float = 0.0):
        self.z_weight = z_weight
        self.part_names = ("z_loss",) if z_weight else ()

    def count(self, batch: Batch) -> float:
        """The sum of the weights."""
        return batch.weight()

    def loss(self, tokens: TokenLogprobs, divisor: Tensor | float) -> ObjectiveLoss:
        """As the class says, without z-loss, which log-probabilities do not tell."""
        weights_N = tokens.columns.get(WEIGHTS)
        terms_N = tokens.values_N if weights_N is None else tokens.values_N * weights_N
        return ObjectiveLoss(-terms_N.sum() / divisor)

    def of_hidden(
        self, hidden_BTD: Tensor, layout: SequenceLayout, taught: Taught, divisor: Tensor | float, weight_VD: Tensor
    ) -> ObjectiveLoss:
        """The same, one product with the head's weight cheaper: the gradient of each log-probability, `-w_t / divisor`,
        is known before the logits are."""
        if not self.z_weight:
            return ObjectiveLoss(token_loss(hidden_BTD, layout, taught, 1, weight_VD) / divisor)
        tokens = taught.tokens(hidden_BTD, layout, steps=1)
        weights_N = tokens.columns.get(WEIGHTS)
        total, squared = linear_z_loss(tokens.hidden_ND, weight_VD, tokens.targets_N, weights_N, self.z_weight)
        cross_entropy = total - self.z_weight * squared
        return ObjectiveLoss(cross_entropy / divisor, {"z_loss": squared / divisor})


CROSS_ENTROPY = CrossEntropy()
