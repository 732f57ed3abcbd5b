"""Log-likelihoods: the loss of each taught token of many sequences, batched by length.

Shapes: B rows, T tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from seektune.data.example import Example
from seektune.data.packing import collate, singly
from seektune.model.head import TokenScores
from seektune.sequence import IGNORE_INDEX, Batch

Progress = Callable[[int, int], None]
"""Called with the number of finished sequences and the total."""


@dataclass(frozen=True)
class Likelihood:
    """A model's scores of the taught tokens of a sequence."""

    losses: list[float]
    """Negative log-likelihood of each token, in nats."""
    greedy: bool
    """Whether each token is the model's first choice."""

    @property
    def log(self) -> float:
        """The sum of the log-likelihoods."""
        return -math.fsum(self.losses)


class Scorer(Protocol):
    """A model, on one device or spread over processes."""

    def score(self, batch: Batch) -> TokenScores:
        """Scores of the taught tokens."""
        ...


@torch.no_grad()
def likelihoods(
    model: Scorer, sequences: Sequence[Example], batch_tokens: int, pad_id: int, progress: Progress | None = None
) -> list[Likelihood]:
    """The likelihood of each sequence's taught tokens, in the order of the sequences.

    Args:
        model: the model.
        sequences: tokens, with labels of the taught ones (never the first).
        batch_tokens: maximum tokens, padding included, of one forward (a longer sequence runs alone).
        pad_id: token id of padding.
        progress: called after each forward with the number of finished sequences.
    """
    found = [Likelihood([], True)] * len(sequences)
    done = 0
    for group in by_length([len(sequence.tokens) for sequence in sequences], batch_tokens):
        batch = collate(singly([sequences[i] for i in group]), pad_id)
        scores = model.score(batch)
        losses_BT = scores.losses_BT.double().cpu()
        first_BT = scores.first_BT.cpu()
        taught_BT = batch.labels[:, 1:] != IGNORE_INDEX
        for row, i in enumerate(group):
            at = taught_BT[row].nonzero().squeeze(1)
            found[i] = Likelihood(losses_BT[row, at].tolist(), bool(first_BT[row, at].all()))
        done += len(group)
        if progress is not None:
            progress(done, len(sequences))
    return found


def by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices grouped so that rows × longest row ≤ `batch_tokens`; longest first, so that memory runs out early."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        if group and (len(group) + 1) * lengths[group[0]] > batch_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
