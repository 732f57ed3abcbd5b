"""The task `ngram`: the held-out loss beside that of a 5-gram model of the same training tokens."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum
from typing import ClassVar

from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.config import NGRAM
from seektune.evaluate.likelihood import Progress, Scorer
from seektune.evaluate.ngram import Grams, NgramModel, count_grams
from seektune.evaluate.task import Baseline, Metric, TaskInfo, TaskScore
from seektune.evaluate.validation_task import ValidationTask
from seektune.sequence import IGNORE_INDEX, Batch

ORDER = 5
MOST_TOKENS = 20_000_000
"""Training tokens that are counted at the most: about 2 GB."""


@dataclass(frozen=True)
class NgramTask:
    """The loss on the held-out rows of the task `validation`; its baseline is the loss of a 5-gram model there.

    Both read the same documents, or parts of documents, and predict the same tokens. The grams are counted when the
    task's labels are first needed.
    """

    validation: ValidationTask
    training: Callable[[], Iterable[Sequence[int]]]
    """Token ids of each training example."""
    vocab_size: int
    decodes: ClassVar[bool] = False

    @cached_property
    def info(self) -> TaskInfo:
        """The loss and perplexity of `validation`, with the loss of the 5-gram model as a baseline."""
        whole = self.validation.info
        grams = self._grams
        baseline = Baseline(f"{ORDER}-gram model", self._loss(NgramModel.kneser_ney(grams)))
        loss: Metric = replace(whole.metrics["loss"], headline=True, baseline=baseline)
        about = (
            f"held-out examples; the {ORDER}-gram model is counted on the training tokens, Kneser-Ney smoothed; with "
            f"Witten-Bell back-off its loss is {self._loss(NgramModel.witten_bell(grams)):z.4f}"
        )
        return replace(
            whole,
            name=NGRAM,
            title=NGRAM,
            about=about,
            metrics={"loss": loss, "perplexity": whole.metrics["perplexity"]},
        )

    def run(
        self, model: Scorer, tokenizer: Tokenizer, batch_tokens: int, progress: Progress | None = None
    ) -> TaskScore:
        """As `Task.run`."""
        found = self.validation.run(model, tokenizer, batch_tokens, progress)
        outcomes = {name: found.outcomes[name] for name in ("losses", "tokens_each")}
        metrics = {name: found.metrics[name] for name in ("loss", "perplexity")}
        return TaskScore(self.info, metrics, found.counts, outcomes)

    @property
    def _grams(self) -> list[Grams]:
        return count_grams(_limited(self.training()), ORDER, self.vocab_size)

    def _loss(self, model: NgramModel) -> float:
        losses = [each for batch in self.validation.batches for each in _losses(model, batch)]
        return fsum(losses) / len(losses)


def _losses(model: NgramModel, batch: Batch) -> Iterator[float]:
    """The losses of the taught tokens of a batch."""
    rows = (batch.tokens.tolist(), batch.labels.tolist(), batch.documents.tolist())
    for tokens, labels, documents in zip(*rows, strict=True):
        for number in range(1, max(documents) + 1):
            places = [place for place, document in enumerate(documents) if document == number]
            own = model.losses([tokens[place] for place in places])
            yield from (loss for loss, place in zip(own, places[1:], strict=True) if labels[place] != IGNORE_INDEX)


def _limited(documents: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
    """The documents; too many tokens are an error."""
    tokens = 0
    for document in documents:
        tokens += len(document)
        if tokens > MOST_TOKENS:
            raise ValueError(f"evaluate.tasks ngram counts at most {MOST_TOKENS:,} training tokens; remove the task")
        yield document
