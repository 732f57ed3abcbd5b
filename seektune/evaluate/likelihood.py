"""How likely a model finds texts: the loss of each taught token of many sequences, batched by length.

Shapes: B rows, T tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from seektune.data.packing import Example, collate, singly
from seektune.model.head import TokenScores
from seektune.sequence import IGNORE_INDEX, Batch

Progress = Callable[[int, int], None]
"""Is told how many sequences are done, and of how many."""


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of the taught tokens of a sequence."""

    losses: list[float]
    """Negative log-likelihood of each token, in nats."""
    greedy: bool
    """Whether each of them is the model's first choice."""

    @property
    def log(self) -> float:
        """The log-likelihood of all of them together."""
        return -math.fsum(self.losses)


class Scorer(Protocol):
    """A model, on one device or spread over processes."""

    def score(self, batch: Batch) -> TokenScores:
        """How likely the taught tokens are."""
        ...


@torch.no_grad()
def likelihoods(
    model: Scorer, sequences: Sequence[Example], batch_tokens: int, pad_id: int, progress: Progress | None = None
) -> list[Likelihood]:
    """The likelihood of each sequence's taught tokens, in the order of the sequences.

    Args:
        model: whose likelihoods they are.
        sequences: tokens, and labels where they are taught (no first token is).
        batch_tokens: most tokens, padding included, of one forward (a longer sequence is run alone).
        pad_id: fills rows up.
        progress: is told after each forward how many sequences are done.
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
    """Indices grouped so that rows × longest row ≤ `batch_tokens`, longest first (where memory is short, it shows)."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        if group and (len(group) + 1) * lengths[group[0]] > batch_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def continuation(prompt: list[int], ending: list[int], name: str) -> Example:
    """A sequence in which the ending is taught."""
    return Example(prompt + ending, [IGNORE_INDEX] * len(prompt) + ending, name)
