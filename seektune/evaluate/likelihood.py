"""How likely a model finds texts: the loss of each taught token of many sequences, batched by length.

Shapes: B rows, T tokens, N taught tokens of a row, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from seektune.data.packing import Example, collate, singly
from seektune.sequence import IGNORE_INDEX

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


@torch.inference_mode()
def likelihoods(
    model: nn.Module, sequences: Sequence[Example], batch_tokens: int, pad_id: int, progress: Progress | None = None
) -> list[Likelihood]:
    """The likelihood of each sequence's taught tokens, which must be a run without gaps, in the order of the sequences.

    Args:
        model: gives `model(input_ids, documents=documents).logits` `[B, T, V]`.
        sequences: tokens, and labels where they are taught (no first token is).
        batch_tokens: most tokens, padding included, of one forward (a longer sequence is run alone).
        pad_id: fills rows up.
        progress: is told after each forward how many sequences are done.
    """
    device = next(model.parameters()).device
    found = [Likelihood([], True)] * len(sequences)
    done = 0
    for group in by_length([len(sequence.tokens) for sequence in sequences], batch_tokens):
        batch = collate(singly([sequences[i] for i in group]), pad_id).to(device)
        logits_BTV = model(batch.tokens, documents=batch.documents).logits
        # Row by row and only where something is taught: no second tensor of the size of the logits.
        taught = [_taught(logits_BTV[b], batch.labels[b]) for b in range(len(group))]
        numbers_N = torch.cat(taught, dim=1).tolist()
        start = 0
        for i, each in zip(group, taught, strict=True):
            stop = start + each.shape[1]
            found[i] = Likelihood(numbers_N[0][start:stop], all(numbers_N[1][start:stop]))
            start = stop
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


def _taught(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    """Loss of each taught token of a row, and 1 where it was the first choice of the position before it: `[2, N]`."""
    at = (labels_T[1:] != IGNORE_INDEX).nonzero().squeeze(1)
    if len(at) == 0:
        return logits_TV.new_zeros((2, 0), dtype=torch.float64)
    # A taught run is contiguous, so its logits are a view.
    logits_NV = logits_TV[int(at[0]) : int(at[-1]) + 1].float()
    labels_N = labels_T[at + 1]
    losses_N = cross_entropy(logits_NV, labels_N, reduction="none").double()
    return torch.stack((losses_N, (logits_NV.argmax(-1) == labels_N).double()))
