"""HellaSwag as an exam: which of four endings does the model find most likely, scored as others score it.

Shapes: B rows, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from seektune.data.examples import encode_continuations, ending_text
from seektune.data.hellaswag import HellaswagRow
from seektune.data.packing import Example, collate, singly
from seektune.data.tokenizer import Tokenizer
from seektune.sequence import IGNORE_INDEX

Progress = Callable[[int, int], None]
"""Is told how many endings are scored, and of how many."""


@dataclass(frozen=True)
class Share:
    """A share of right answers with the 95 % interval (Wilson's) that its number of questions allows."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, right: int, n: int) -> "Share":
        """`right` of `n` questions."""
        z = 1.959963984540054
        share = right / n
        scale = 1 + z * z / n
        middle = (share + z * z / (2 * n)) / scale
        reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
        return cls(share, max(0.0, middle - reach), min(1.0, middle + reach))


@dataclass(frozen=True)
class HellaswagScore:
    """What the exam found."""

    acc: Share
    """Right answers by the summed log-likelihood of the ending."""
    acc_norm: Share
    """Right answers by that divided by the characters of the ending."""
    n: int
    """Number of questions."""
    loss: float
    """Mean negative log-likelihood, in nats per token, of the right endings and their EOS."""
    loss_tokens: int
    """Tokens that `loss` is a mean of."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HellaswagScore":
        """Back from `to_dict()`."""
        return cls(**{**values, "acc": Share(**values["acc"]), "acc_norm": Share(**values["acc_norm"])})


def spread_evenly(rows: Sequence[HellaswagRow], limit: int | None) -> list[HellaswagRow]:
    """At most `limit` rows, taken at even distances: the split is sorted by where its texts come from."""
    count = len(rows) if limit is None else min(limit, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def evaluate_hellaswag(
    model: nn.Module,
    tokenizer: Tokenizer,
    rows: Sequence[HellaswagRow],
    batch_tokens: int,
    progress: Progress | None = None,
) -> HellaswagScore:
    """Score a model as lm-evaluation-harness does (task `hellaswag`, no examples before the question).

    An ending is scored by the sum of the log-likelihoods of the tokens of " " + ending after the prompt; `acc` takes
    the likeliest, `acc_norm` the likeliest per character of the ending (without that space). Prompt and ending are
    encoded in one piece and cut at the length of the prompt alone (`encode_continuations`). Two choices are ours: the
    prompt begins with BOS, and EOS after the right ending counts in `loss` (not in the scores), because it is taught.

    Args:
        model: gives `model(input_ids, documents=documents).logits` `[B, T, V]`.
        tokenizer: the one the model is trained with.
        rows: questions, usually of the raw validation split.
        batch_tokens: most tokens, padding included, of one forward (a longer ending is run alone).
        progress: is told after each forward how many endings are done.

    Raises:
        ArithmeticError: the model gives no number for an ending; the message names the row.
    """
    assert rows, "an exam needs questions"
    asked = [(row.prompt, ending_text(ending)) for row in rows for ending in row.endings]
    sequences = [
        _sequence(prompt, [*ending, tokenizer.eos_id], rows[i // 4].name)
        for i, (prompt, ending) in enumerate(encode_continuations(tokenizer, asked))
    ]
    return _score(rows, ending_losses(model, sequences, batch_tokens, tokenizer.pad_id, progress))


@torch.inference_mode()
def ending_losses(
    model: nn.Module, sequences: Sequence[Example], batch_tokens: int, pad_id: int, progress: Progress | None = None
) -> list[list[float]]:
    """Negative log-likelihood, in nats, of each taught token of each sequence, in the order of the sequences."""
    device = next(model.parameters()).device
    losses: list[list[float]] = [[] for _ in sequences]
    done = 0
    for group in by_length([len(sequence.tokens) for sequence in sequences], batch_tokens):
        batch = collate(singly([sequences[i] for i in group]), pad_id).to(device)
        logits_BTV = model(batch.tokens, documents=batch.documents).logits
        # Row by row and only where something is taught: no second tensor of the size of the logits.
        taught = [_taught_losses(logits_BTV[b], batch.labels[b]) for b in range(len(group))]
        numbers = torch.cat(taught).tolist()
        for i, count in zip(group, [len(each) for each in taught], strict=True):
            losses[i], numbers = numbers[:count], numbers[count:]
        done += len(group)
        if progress is not None:
            progress(done, len(sequences))
    return losses


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


def _sequence(prompt: list[int], ending: list[int], name: str) -> Example:
    return Example(prompt + ending, [IGNORE_INDEX] * len(prompt) + ending, name)


def _taught_losses(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    """Loss of each taught token of a row, predicted by the position before it."""
    at = (labels_T[1:] != IGNORE_INDEX).nonzero().squeeze(1)
    # A taught run is contiguous, so its logits are a view.
    first, last = int(at[0]), int(at[-1]) + 1
    return cross_entropy(logits_TV[first:last].float(), labels_T[first + 1 : last + 1], reduction="none").double()


def _score(rows: Sequence[HellaswagRow], losses: Sequence[Sequence[float]]) -> HellaswagScore:
    right = right_norm = 0
    taught: list[float] = []
    for i, row in enumerate(rows):
        answers = losses[4 * i : 4 * i + 4]
        # The last token is EOS, which the harness does not score.
        likelihoods = [-math.fsum(answer[:-1]) for answer in answers]
        if any(math.isnan(value) for value in likelihoods):
            raise ArithmeticError(f"{row.name}: the model's log-likelihood of an ending is not a number")
        per_character = [value / len(ending) for value, ending in zip(likelihoods, row.endings, strict=True)]
        right += likelihoods.index(max(likelihoods)) == row.label
        right_norm += per_character.index(max(per_character)) == row.label
        taught += answers[row.label]
    n = len(rows)
    loss = math.fsum(taught) / len(taught)
    return HellaswagScore(Share.of(right, n), Share.of(right_norm, n), n, loss, len(taught))
