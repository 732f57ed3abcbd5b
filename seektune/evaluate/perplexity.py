"""Perplexity: how surprised a model is by plain text, every token of which is predicted exactly once."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.likelihood import Progress, Scorer, continuation, likelihoods
from seektune.evaluate.statistics import Change, Estimate
from seektune.io.jsonl import read_jsonl
from seektune.io.text import read_text

SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True)
class Text:
    """A document and where it was read."""

    text: str
    name: str


@dataclass(frozen=True)
class PerplexityScore:
    """What the exam found; intervals resample windows."""

    loss: Estimate
    """Mean negative log-likelihood, in nats per token."""
    perplexity: Estimate
    """exp(`loss`)."""
    bits_per_byte: Estimate
    """The same loss in bits per byte of UTF-8: comparable across tokenizers."""
    tokens: int
    bytes: int
    documents: int
    windows: int
    length: int
    stride: int
    sums: list[float]
    """Loss of each window, in nats."""
    counts: list[int]
    """Tokens that each window predicts."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, without those of single windows."""
        return {key: value for key, value in asdict(self).items() if key not in ("sums", "counts")}

    def since(self, before: "PerplexityScore") -> dict[str, Change]:
        """What changed from another model's score on the same windows to this one."""
        return {"loss": Change.of_ratios(before.sums, self.sums, self.counts)}


def read_texts(path: Path) -> list[Text]:
    """The documents of a file, or of all files of a folder, in the order of their names.

    A .txt file is one document; each line of a .jsonl file is one, under the key `text`.

    Raises:
        ValueError: there is nothing to read, or a line is not as it should be.
        OSError: a file cannot be read.
    """
    kinds = "perplexity reads .txt and .jsonl files, or a folder of them"
    if not path.exists():
        raise ValueError(f"{path} does not exist; {kinds}")
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if any(file.suffix not in SUFFIXES for file in files):
        raise ValueError(f"{path}: {kinds}")
    texts = [text for file in files for text in _read(file) if text.text]
    if not texts:
        raise ValueError(f"{path}: holds no text")
    return texts


def windows(tokens: Sequence[int], bos_id: int, length: int, stride: int) -> Iterator[tuple[list[int], list[int]]]:
    """Windows over a document: what is read, and what is predicted after it.

    The first window reads BOS and predicts up to `length` tokens. Each further one predicts the next `stride` tokens
    (fewer at the end) and reads as much of the text before them as makes `length` inputs in all. With
    `stride == length` these are the windows of lm-evaluation-harness.
    """
    assert 0 < stride <= length
    yield [bos_id], list(tokens[:length])
    for start in range(length, len(tokens), stride):
        stop = min(start + stride, len(tokens))
        yield list(tokens[max(0, stop - length - 1) : start]), list(tokens[start:stop])


def evaluate_perplexity(
    model: Scorer,
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    length: int,
    stride: int,
    batch_tokens: int,
    progress: Progress | None = None,
) -> PerplexityScore:
    """Predict every token of every text once, in windows of at most `length` inputs (see `windows`).

    EOS is not predicted, so that the loss is that of the text alone.

    Raises:
        ArithmeticError: the model gives no number for a text; the message names it.
    """
    assert texts, "an exam needs texts"
    sequences = [
        continuation(read, predicted, text.name)
        for text, ids in zip(texts, tokenizer.encode_batch([text.text for text in texts]), strict=True)
        for read, predicted in windows(ids, tokenizer.bos_id, length, stride)
    ]
    found = likelihoods(model, sequences, batch_tokens, tokenizer.pad_id, progress)
    sums = [-each.log for each in found]
    counts = [len(each.losses) for each in found]
    for sequence, value in zip(sequences, sums, strict=True):
        if math.isnan(value):
            raise ArithmeticError(f"{sequence.name}: the model's log-likelihood of the text is not a number")
    size = sum(len(text.text.encode()) for text in texts)
    loss = Estimate.of_ratio(sums, counts)
    per_byte = sum(counts) / (size * math.log(2))
    return PerplexityScore(
        loss=loss,
        perplexity=Estimate(*map(math.exp, (loss.value, loss.low, loss.high))),
        bits_per_byte=Estimate(*(value * per_byte for value in (loss.value, loss.low, loss.high))),
        tokens=sum(counts),
        bytes=size,
        documents=len(texts),
        windows=len(sequences),
        length=length,
        stride=stride,
        sums=sums,
        counts=counts,
    )


def _read(file: Path) -> list[Text]:
    if file.suffix == ".txt":
        return [Text(read_text(file), str(file))]
    return [_document(record, place) for place, record in read_jsonl(file)]


def _document(record: dict[str, Any], place: str) -> Text:
    if not isinstance(record.get("text"), str):
        raise ValueError(f"{place}: needs the key text, whose value is a text")
    return Text(record["text"], place)
