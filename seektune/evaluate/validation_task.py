"""The task `validation`: loss, perplexity and next-token accuracy on held-out examples.

Shapes: B rows, T tokens, N documents.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from seektune.data.datasets.dataset import DataCard
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.config import VALIDATION
from seektune.evaluate.likelihood import Progress, Scorer
from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import Baseline, Metric, TaskInfo, TaskScore
from seektune.sequence import Batch, SequenceLayout


@dataclass(frozen=True)
class ValidationTask:
    """Batches of held-out examples, those of the validation loss.

    Only taught tokens count. Intervals and tests resample examples, since tokens of one are not independent.
    """

    batches: Sequence[Batch]
    data: DataCard | None = None
    decodes: ClassVar[bool] = False

    @property
    def info(self) -> TaskInfo:
        """Labels of the metrics; the baseline of accuracy is always choosing the most frequent taught token."""
        return TaskInfo(
            VALIDATION,
            VALIDATION,
            items="examples",
            about="held-out examples; next-token accuracy is the share of taught tokens that are the first choice",
            test="random signs of the examples' differences",
            metrics={
                "loss": Metric(
                    "loss", unit="nats per taught token", outcomes="losses", sizes="tokens_each", headline=False
                ),
                "perplexity": Metric("perplexity", ",.1f"),
                "accuracy": Metric(
                    "next-token accuracy", ".1%", baseline=self._baseline(), outcomes="hits", sizes="tokens_each"
                ),
            },
            facts=(("examples", "{n:,} with {tokens:,} taught tokens"),),
            data=self.data,
        )

    @torch.no_grad()
    def run(
        self, model: Scorer, tokenizer: Tokenizer, batch_tokens: int, progress: Progress | None = None
    ) -> TaskScore:
        """As `Task.run`, with the given batches."""
        losses: list[float] = []
        hits: list[int] = []
        tokens: list[int] = []
        for done, batch in enumerate(self.batches, start=1):
            scores = model.score(batch)
            taught_BT = _taught(batch)
            losses += _by_document(scores.losses_BT.cpu(), batch).tolist()
            hits += _by_document(scores.first_BT.cpu() & taught_BT, batch).long().tolist()
            tokens += _by_document(taught_BT, batch).long().tolist()
            if progress is not None:
                progress(done, len(self.batches))
        if not math.isfinite(math.fsum(losses)):
            raise ArithmeticError("the loss on the held-out examples is not a finite number")
        return self._score(losses, hits, tokens)

    def _score(self, losses: list[float], hits: list[int], tokens: list[int]) -> TaskScore:
        """The score from values per document; documents without taught tokens are left out."""
        used = [i for i, count in enumerate(tokens) if count]
        losses = [losses[i] for i in used]
        hits = [hits[i] for i in used]
        tokens = [tokens[i] for i in used]
        loss = Estimate.of_ratio(losses, tokens)
        return TaskScore(
            self.info,
            {"loss": loss, "perplexity": loss.map(math.exp), "accuracy": Estimate.of_parts(hits, tokens)},
            {"n": len(used), "tokens": sum(tokens)},
            {"losses": losses, "hits": hits, "tokens_each": tokens},
        )

    def _baseline(self) -> Baseline:
        counts: Counter[int] = Counter()
        for batch in self.batches:
            counts.update(batch.labels[:, 1:][_taught(batch)[:, :-1]].tolist())
        return Baseline("always the most frequent token", max(counts.values()) / counts.total())


def _taught(batch: Batch) -> Tensor:
    """Positions that predict a taught token of their own document, bool `[B, T]`: scores are stored there."""
    layout = SequenceLayout.from_documents(batch.documents)
    return layout.targets(batch.labels, steps=1) >= 0


def _by_document(values_BT: Tensor, batch: Batch) -> Tensor:
    """The sum of the values of each document `[N]`, row by row; 0 for document numbers that a row lacks."""
    most = int(batch.documents.max()) + 1
    sums = torch.zeros(len(batch.documents), most, dtype=torch.float64)
    sums.scatter_add_(1, batch.documents, values_BT.double())
    return sums[:, 1:].flatten()
