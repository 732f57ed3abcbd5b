"""The reference model of preference objectives: its log-probabilities as a column of batches.

Shapes: B rows, T tokens, U documents.
"""

from collections.abc import Callable
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from seektune.lora.state import adapters_off
from seektune.parallel.model import ParallelModel
from seektune.sequence import REFERENCE, Batch


class ReferenceModel(Protocol):
    """Adds the column `reference` to batches."""

    def own(self, batch: Batch) -> Batch:
        """Of a micro-batch of this process; every process has as many, and calls this for each."""
        ...

    def shared(self, batch: Batch) -> Batch:
        """Of rows that all processes pass."""
        ...


class NoReference:
    """For objectives without a reference model: batches stay as they are."""

    def own(self, batch: Batch) -> Batch:
        """As `ReferenceModel`."""
        return batch

    def shared(self, batch: Batch) -> Batch:
        """As `ReferenceModel`."""
        return batch


class ModelReference:
    """One more forward pass, of a checkpoint or of the model that is trained, without the adapters that it may have."""

    def __init__(self, model: ParallelModel, temperature: float = 1.0):
        """`temperature` divides the logits of this process's own micro-batches."""
        self._model = model
        self._temperature = temperature

    def own(self, batch: Batch) -> Batch:
        """As `ReferenceModel`."""
        return self._with(batch, lambda own: self._model.own_logprobs(own, self._temperature))

    def shared(self, batch: Batch) -> Batch:
        """As `ReferenceModel`."""
        return self._with(batch, self._model.logprobs)

    def _with(self, batch: Batch, logprobs: Callable[[Batch], Tensor]) -> Batch:
        with adapters_off(self._model.stages.values()):
            return with_reference(batch, at_tokens(logprobs(batch)))


def with_reference(batch: Batch, reference_BT: Tensor) -> Batch:
    """The batch with the log-probability of each token by the reference model, or sums of them at single tokens."""
    return batch.having(REFERENCE, reference_BT.to(batch.tokens.device))


def at_tokens(logprobs_BT: Tensor) -> Tensor:
    """Values at the positions that predict tokens, moved to the tokens themselves."""
    return F.pad(logprobs_BT[:, :-1], (1, 0))


NO_REFERENCE = NoReference()
