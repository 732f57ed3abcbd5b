"""Positions and documents of rows of tokens, which define attention's visibility, and the batch that holds them.

Shapes: B rows, T tokens, N taught tokens (those that the loss counts), D width, E entries (compressed windows).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Value = TypeVar("Value")

IGNORE_INDEX = -100
"""Label of a token that is not taught, as in torch's cross-entropy."""

WEIGHTS = "weights"
"""The column of a batch with the factor of each token's loss, fp32."""
PAIRS = "pairs"
"""The column with the pair of each token's document: n if it is the chosen answer of pair n, -n if it is the rejected
one, 0 if it has none, int64. Both answers of a pair are in one micro-batch."""
TEACHER = "teacher"
"""The column with the hidden state from which a teacher predicts each token, `[B, T, E]`, in the teacher's dtype."""
TEACHER_NUMBER = "teacher_number"
"""The column with the number of the teacher of each token, where there are several, fp32."""
TEACHER_IDS = "teacher_ids"
"""The column with the tokens that a teacher finds likeliest at each token, `[B, T, K]`, int32."""
TEACHER_LOGPROBS = "teacher_logprobs"
"""The column with their log-probabilities, and at last that of all other tokens together, `[B, T, K + 1]`, fp32."""
REFERENCE = "reference"
"""The column with the log-probability of each token by a reference model, fp32."""
ADVANTAGES = "advantages"
"""The column with the advantage of each token's document: its reward relative to those of its group, fp32."""
ROLLOUT_LOGPROBS = "rollout_logprobs"
"""The column with the log-probability of each token by the model that sampled it, fp32."""
LOSS_MASK = "loss_mask"
"""The column that is 1 for tokens that a policy gradient counts, and 0 for those of masked answers, fp32."""


@dataclass(frozen=True)
class Windows:
    """The complete windows of `ratio` tokens of a layout; each is compressed into one entry.

    The number of entries E is `T // ratio`, an upper bound for any packing, so that shapes do not depend on the
    documents. Entries are in row order; unused slots come last and are visible to no token.
    """

    ratio: int
    last_BE: Tensor
    """Row index of the last token of each window (int64)."""
    position_BE: Tensor
    """Position, in its document, of the first token of each window (int64)."""
    first_BT: Tensor
    """Index of the first entry of each token's document."""
    count_BT: Tensor
    """Number of its document's entries that each token sees: `(position + 1) // ratio`, 0 for padding."""

    def preceded(self, x_BTC: Tensor, count: int) -> Tensor:
        """Prepend the `count` tokens before this device's slice of the row; nothing for a whole row."""
        return x_BTC

    def of_row(self, entries_BEC: Tensor) -> Tensor:
        """Gather the entries of the whole row, in order, from this device's; a whole row has them all."""
        return entries_BEC

    @property
    def most(self) -> int:
        """Upper bound of the entries that a query of the row can see."""
        return self.last_BE.shape[1]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compress now; always False for a whole row, so that a compiled graph does not
        depend on its length."""
        return False

    def for_indexer(self) -> "Windows":
        """The same windows for the indexer, which has its own tokens and entries."""
        return self


@dataclass(frozen=True)
class SequenceLayout:
    """Positions and document numbers of every token of a batch of rows, both int64 `[B, T]`.

    A document is a run of equal numbers; 0 is padding. Positions restart at each document. The model's `sequence`
    argument: subclasses handle rows that are sharded over devices (`parallel.context`) and rows that continue from a
    cache (`model.kv_cache`); the methods below are those of a whole row.
    """

    positions: Tensor
    documents: Tensor

    @classmethod
    def single(cls, rows: int, length: int, device: torch.device | str | None = None) -> "SequenceLayout":
        """One document per row, without padding."""
        positions = torch.arange(length, device=device).expand(rows, length)
        return cls(positions, torch.ones_like(positions))

    @classmethod
    def from_documents(cls, documents: Tensor) -> "SequenceLayout":
        """Layout of packed rows from each token's document number, `[B, T]` integers, 0 for padding.

        Raises:
            ValueError: the numbers are not a two-dimensional tensor of non-negative integers.
        """
        if documents.dim() != 2 or documents.is_floating_point() or documents.is_complex():
            raise ValueError(f"documents must be integers of shape [rows, tokens], not {_describe(documents)}")
        if documents.numel() and int(documents.min()) < 0:
            raise ValueError("documents must be 0 (padding) or positive document numbers")
        documents = documents.long()
        index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
        begins = torch.ones_like(documents, dtype=torch.bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        start = torch.where(begins, index, 0).cummax(dim=1).values
        return cls(index - start, documents)

    @property
    def real(self) -> Tensor:
        """True for tokens that are not padding, bool `[B, T]`."""
        return self.documents != 0

    def at(self, layer: int) -> "SequenceLayout":
        """The layout for the attention of one layer."""
        return self

    def mine(self, x_BT: Tensor) -> Tensor:
        """This device's slice of the values of the whole row."""
        return x_BT

    def preceded(self, x_BTC: Tensor, count: int) -> Tensor:
        """As `Windows.preceded`."""
        return x_BTC

    def total(self, x: Tensor) -> Tensor:
        """The sum of `x` over the devices that share the row, with its gradient."""
        return x

    def at_positions(self, make: Callable[[Tensor], Value]) -> Value:
        """`make(positions)`; subclasses may cache what several layers share."""
        return make(self.positions)

    @property
    def shares(self) -> int:
        """Number of devices that share the row."""
        return 1

    def numbered(self) -> tuple[Tensor, int]:
        """Each token's document, numbered from 0 over all rows, `[B, T]`, and the number of documents.

        Each padding token counts as a document.
        """
        begins = (self.positions == 0) | ~self.real
        return begins.flatten().cumsum(0).view_as(begins) - 1, int(begins.sum())

    def targets(self, labels_BT: Tensor, steps: int) -> Tensor:
        """The label `steps` tokens ahead of each token of this device; -100 beyond its document. Labels are the whole
        row's."""
        return self.ahead(labels_BT, steps, IGNORE_INDEX)

    def ahead(self, x_BT: Tensor, steps: int, beyond: int) -> Tensor:
        """The value `steps` tokens ahead (1 or 2) of each token of this device; `beyond` after its document. Values are
        the whole row's."""
        joined = self.joined()
        inside = joined if steps == 1 else joined[:, :-1] & joined[:, 1:]
        inside = inside.reshape(*inside.shape, *[1] * (x_BT.dim() - 2))
        return _padded(torch.where(inside, x_BT[:, steps:], beyond), x_BT.shape[1], beyond)

    def taught(self, x_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Select the tokens that have a target: `[N, D]` and their targets `[N]`; only here does a shape depend on
        which tokens are taught.
        """
        taught_BT = targets_BT != IGNORE_INDEX
        return x_BTD[taught_BT], targets_BT[taught_BT]

    def joined(self) -> Tensor:
        """True if tokens t and t+1 belong to the same document, bool `[B, T-1]`."""
        return (self.documents[:, 1:] == self.documents[:, :-1]) & self.real[:, 1:]

    def followed(self) -> "SequenceLayout":
        """Layout of the tokens that are followed by a token of the same document; the others become padding."""
        documents = torch.where(self.joined(), self.documents[:, :-1], 0)
        return replace(self, documents=_padded(documents, self.documents.shape[1], 0))

    def windows(self, ratio: int) -> Windows:
        """The windows of `ratio` tokens, which restart at each document; an incomplete last window has no entry."""
        rows, length = self.documents.shape
        complete = (self.positions + 1) % ratio == 0
        complete &= self.real
        ordinal = complete.long().cumsum(dim=1)
        count = torch.where(self.real, (self.positions + 1) // ratio, 0)
        first = ordinal - count
        size = length // ratio
        slot = torch.where(complete, ordinal - 1, size)
        index = torch.arange(length, device=self.documents.device).expand(rows, length)
        last = torch.full((rows, size + 1), ratio - 1, device=index.device).scatter(1, slot, index)[:, :size]
        position = (self.positions.gather(1, last) + 1 - ratio).clamp(min=0)
        return Windows(ratio, last, position, first, count)


@dataclass(frozen=True)
class Batch:
    """Tokens of a micro-batch with their labels and document numbers, all int64 `[B, T]`, and further columns.

    `labels` are unshifted: `labels[b, t] == tokens[b, t]` if token t is taught, else -100.
    """

    tokens: Tensor
    labels: Tensor
    documents: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """What the objective reads of each token, by name, `[B, T]` or `[B, T, E]`: `weights`; 0 for padding."""

    @classmethod
    def cat(cls, batches: "Sequence[Batch]") -> "Batch":
        """The rows of batches of one length, which have the same columns."""
        names = batches[0].columns.keys()
        assert all(batch.columns.keys() == names for batch in batches), "micro-batches of a step have the same columns"
        tokens, labels, documents = (torch.cat(each) for each in zip(*(x.tensors() for x in batches), strict=True))
        return cls(tokens, labels, documents, {name: torch.cat([x.columns[name] for x in batches]) for name in names})

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with all of its tensors changed in the same way."""
        columns = {name: change(x) for name, x in self.columns.items()}
        return Batch(change(self.tokens), change(self.labels), change(self.documents), columns)

    def having(self, name: str, column: Tensor) -> "Batch":
        """The batch with one more column."""
        return replace(self, columns={**self.columns, name: column})

    def share(self, index: int, count: int) -> "Batch":
        """Part `index` of the rows, cut into `count` parts of nearly equal size."""
        return self.each(lambda x: x.tensor_split(count)[index])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return self.each(lambda x: x.to(device))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, labels and documents."""
        return self.tokens, self.labels, self.documents

    def padded(self, rows: int = 0, length: int = 0) -> "Batch":
        """The batch padded to at least `rows` rows of `length` tokens."""
        more = (0, max(length - self.tokens.shape[1], 0), 0, max(rows - self.tokens.shape[0], 0))
        wider = self.each(lambda x: F.pad(x, (*[0, 0] * (x.dim() - 2), *more)))
        return replace(wider, labels=F.pad(self.labels, more, value=IGNORE_INDEX))

    def taught(self) -> int:
        """Number of tokens that the next-token loss counts; a document's first token is not predicted."""
        return int(self.counted().sum())

    def weight(self) -> float:
        """Sum of the weights of these tokens; their number if the batch has no weights."""
        if WEIGHTS not in self.columns:
            return self.taught()
        return float((self.columns[WEIGHTS][:, 1:].double() * self.counted()).sum())

    def counted(self) -> Tensor:
        """Whether the loss counts each token but the first of a row, `[B, T-1]`."""
        inside = SequenceLayout.from_documents(self.documents).joined()
        return (self.labels[:, 1:] != IGNORE_INDEX) & inside


def following(x_BT: Tensor) -> Tensor:
    """The values shifted left by one token, `[B, T]`; 0 at the end."""
    return _padded(x_BT[:, 1:], x_BT.shape[1], 0)


def _padded(x_BT: Tensor, length: int, value: int) -> Tensor:
    return F.pad(x_BT, (*[0, 0] * (x_BT.dim() - 2), 0, length - x_BT.shape[1]), value=value)


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {list(x.shape)}"
