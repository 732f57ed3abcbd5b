"""Perplexity of plain text, in windows that predict every token exactly once."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from seektune.data.example import continuation
from seektune.data.sources.find import check_numbers
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.likelihood import Progress, Scorer, likelihoods
from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import Metric, TaskInfo, TaskScore
from seektune.io.jsonl import read_jsonl
from seektune.io.text import read_text

SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True)
class Text:
    """A document and its source."""

    text: str
    name: str


def read_texts(path: Path) -> list[Text]:
    """The documents of a file, or of all files of a folder, in the order of their names.

    A .txt file is one document; each line of a .jsonl file is one, under the key `text`.

    Raises:
        ValueError: there is no text, a line is invalid, or a numbered file of the folder is missing.
        OSError: a file cannot be read.
    """
    kinds = "perplexity reads .txt and .jsonl files, or a folder of them"
    if not path.exists():
        raise ValueError(f"{path} does not exist; {kinds}")
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if path.is_dir():
        check_numbers([str(file) for file in files])
    if any(file.suffix not in SUFFIXES for file in files):
        raise ValueError(f"{path}: {kinds}")
    texts = [text for file in files for text in _read(file) if text.text]
    if not texts:
        raise ValueError(f"{path}: holds no text")
    return texts


def windows(tokens: Sequence[int], bos_id: int, length: int, stride: int) -> Iterator[tuple[list[int], list[int]]]:
    """Windows over a document: the tokens that are read, and those that are predicted.

    The first window reads BOS and predicts up to `length` tokens. Each further one predicts the next `stride` tokens
    (fewer at the end) and reads as much of the text before them as makes `length` inputs in all. With
    `stride == length` these are the windows of lm-evaluation-harness.
    """
    assert 0 < stride <= length
    yield [bos_id], list(tokens[:length])
    for start in range(length, len(tokens), stride):
        stop = min(start + stride, len(tokens))
        yield list(tokens[max(0, stop - length - 1) : start]), list(tokens[start:stop])


@dataclass(frozen=True)
class PerplexityTask:
    """Predict every token of every text once, in windows of at most `length` inputs (see `windows`).

    EOS is not predicted, so that the loss is that of the text alone. Intervals resample windows.
    """

    texts: Sequence[Text]
    length: int
    stride: int
    decodes: ClassVar[bool] = False

    @property
    def info(self) -> TaskInfo:
        """Perplexity, the loss in nats per token, and the same loss in bits per byte of UTF-8."""
        return TaskInfo(
            "perplexity",
            "perplexity",
            items="windows",
            about="windows of text",
            test="random signs of the windows' differences",
            metrics={
                "perplexity": Metric("perplexity"),
                "loss": Metric("loss", unit="nats per token", outcomes="losses", sizes="sizes"),
                "bits_per_byte": Metric("bits per byte"),
            },
            facts=(
                ("text", "{documents:,} documents, {tokens:,} tokens, {bytes:,} bytes"),
                ("windows", "{n:,} of up to {length} tokens, stride {stride}"),
            ),
        )

    def run(
        self, model: Scorer, tokenizer: Tokenizer, batch_tokens: int, progress: Progress | None = None
    ) -> TaskScore:
        """As `Task.run`."""
        assert self.texts, "there are no texts"
        sequences = [
            continuation(read, predicted, text.name)
            for text, ids in zip(self.texts, tokenizer.encode_batch([text.text for text in self.texts]), strict=True)
            for read, predicted in windows(ids, tokenizer.bos_id, self.length, self.stride)
        ]
        found = likelihoods(model, sequences, batch_tokens, tokenizer.pad_id, progress)
        losses = [-each.log for each in found]
        sizes = [float(len(each.losses)) for each in found]
        for sequence, value in zip(sequences, losses, strict=True):
            if math.isnan(value):
                raise ArithmeticError(f"{sequence.name}: the model's log-likelihood of the text is not a number")
        size = sum(len(text.text.encode()) for text in self.texts)
        tokens = int(sum(sizes))
        loss = Estimate.of_ratio(losses, sizes)
        per_byte = tokens / (size * math.log(2))
        counts = {"tokens": tokens, "bytes": size, "documents": len(self.texts), "windows": len(sequences)}
        return TaskScore(
            self.info,
            {"loss": loss, "perplexity": loss.map(math.exp), "bits_per_byte": loss.map(lambda nats: nats * per_byte)},
            {"n": len(sequences), **counts, "length": self.length, "stride": self.stride},
            {"losses": losses, "sizes": sizes},
        )


def _read(file: Path) -> list[Text]:
    if file.suffix == ".txt":
        return [Text(read_text(file), str(file))]
    return [_document(record, place) for place, record in read_jsonl(file)]


def _document(record: dict[str, Any], place: str) -> Text:
    if not isinstance(record.get("text"), str):
        raise ValueError(f"{place}: needs the key text, whose value is a text")
    return Text(record["text"], place)
