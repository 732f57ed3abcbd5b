"""The task `validation`: loss, perplexity and next-token accuracy on held-out examples, of pairs the chosen answers.

Shapes: B rows, T tokens, N documents.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from seektune.data.datasets.dataset import DataCard
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.config import VALIDATION
from seektune.evaluate.likelihood import Progress, Scorer
from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import Baseline, Metric, Outcomes, TaskInfo, TaskScore
from seektune.sequence import PAIRS, Batch, SequenceLayout


@dataclass(frozen=True)
class ByExample:
    """Values of examples in which something is taught."""

    losses: list[float]
    """Sum over the taught tokens, in nats."""
    hits: list[int]
    """Taught tokens that are the first choice."""
    tokens: list[int]
    """Taught tokens."""

    @classmethod
    def of(cls, model: Scorer, batch: Batch) -> "ByExample":
        """The values of the examples of a batch."""
        scores = model.score(batch)
        taught_BT = _taught(batch)
        tokens_N = _by_document(taught_BT, batch)
        used_N = tokens_N > 0
        return cls(
            _by_document(scores.losses_BT.cpu(), batch)[used_N].tolist(),
            _by_document(scores.first_BT.cpu() & taught_BT, batch)[used_N].long().tolist(),
            tokens_N[used_N].long().tolist(),
        )

    @classmethod
    def joined(cls, parts: Sequence["ByExample"]) -> "ByExample":
        """The values of several batches."""
        return cls(
            [loss for part in parts for loss in part.losses],
            [hits for part in parts for hits in part.hits],
            [tokens for part in parts for tokens in part.tokens],
        )


@dataclass(frozen=True)
class ValidationTask:
    """Batches of held-out examples, those of the validation loss.

    Only taught tokens count, and only those of chosen or desirable answers where objectives compare answers. Intervals
    and tests resample examples, since tokens of one are not independent.
    """

    batches: Sequence[Batch]
    data: DataCard | None = None
    datasets: Mapping[str, range] = field(default_factory=dict)
    """Numbers of the batches of each dataset by its name in logs; empty if there is only one."""
    decodes: ClassVar[bool] = False

    @classmethod
    def of(
        cls, batches: Sequence[Batch], data: DataCard | None, datasets: Mapping[str, Sequence[Batch]]
    ) -> "ValidationTask":
        """With the batches of each dataset, which follow one another in `batches`.

        Raises:
            ValueError: nothing is taught in any batch.
        """
        ends = list(accumulate(map(len, datasets.values())))
        ranges = {name: range(end - len(part), end) for end, (name, part) in zip(ends, datasets.items(), strict=True)}
        taught = {name: own for name, own in ranges.items() if _teaches(batches[i] for i in own)}
        if not _teaches(batches):
            raise ValueError(
                "evaluate.tasks validation: no held-out row has a chosen or desirable answer; hold out others, or "
                "remove the task"
            )
        return cls(batches, data, taught)

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
                "loss": _loss_metric("", "loss", headline=False),
                "perplexity": Metric("perplexity", ",.1f"),
                "accuracy": Metric(
                    "next-token accuracy", ".1%", baseline=self._baseline(), outcomes="hits", sizes="tokens_each"
                ),
                **{f"{name}_loss": _loss_metric(f"{name}_", f"loss on {name}", True) for name in self.datasets},
                **{f"{name}_perplexity": Metric(f"perplexity on {name}", ",.1f") for name in self.datasets},
            },
            facts=(("examples", "{n:,} with {tokens:,} taught tokens"),),
            data=self.data,
        )

    @torch.no_grad()
    def run(
        self, model: Scorer, tokenizer: Tokenizer, batch_tokens: int, progress: Progress | None = None
    ) -> TaskScore:
        """As `Task.run`, with the given batches."""
        found: list[ByExample] = []
        for done, batch in enumerate(self.batches, start=1):
            found.append(ByExample.of(model, batch))
            if progress is not None:
                progress(done, len(self.batches))
        whole = ByExample.joined(found)
        if not math.isfinite(math.fsum(whole.losses)):
            raise ArithmeticError("the loss on the held-out examples is not a finite number")
        return self._score(
            whole, {name: ByExample.joined([found[i] for i in own]) for name, own in self.datasets.items()}
        )

    def _score(self, whole: ByExample, parts: Mapping[str, ByExample]) -> TaskScore:
        loss = Estimate.of_ratio(whole.losses, whole.tokens)
        each = {name: Estimate.of_ratio(part.losses, part.tokens) for name, part in parts.items()}
        outcomes: dict[str, Outcomes] = {"losses": whole.losses, "hits": whole.hits, "tokens_each": whole.tokens}
        for name, part in parts.items():
            outcomes |= {f"{name}_losses": part.losses, f"{name}_tokens_each": part.tokens}
        return TaskScore(
            self.info,
            {
                "loss": loss,
                "perplexity": loss.map(math.exp),
                "accuracy": Estimate.of_parts(whole.hits, whole.tokens),
                **{f"{name}_loss": found for name, found in each.items()},
                **{f"{name}_perplexity": found.map(math.exp) for name, found in each.items()},
            },
            {"n": len(whole.tokens), "tokens": sum(whole.tokens)},
            outcomes,
        )

    def _baseline(self) -> Baseline:
        counts: Counter[int] = Counter()
        for batch in self.batches:
            counts.update(batch.labels[:, 1:][_taught(batch)[:, :-1]].tolist())
        return Baseline("always the most frequent token", max(counts.values()) / counts.total())


def _loss_metric(prefix: str, label: str, headline: bool) -> Metric:
    unit = "nats per taught token"
    return Metric(label, unit=unit, outcomes=f"{prefix}losses", sizes=f"{prefix}tokens_each", headline=headline)


def _teaches(batches: Iterable[Batch]) -> bool:
    return any(bool(_taught(batch).any()) for batch in batches)


def _taught(batch: Batch) -> Tensor:
    """Positions that predict a taught token of their own document, bool `[B, T]`: scores are stored there.

    Of answers that objectives compare, only the chosen or desirable ones.
    """
    layout = SequenceLayout.from_documents(batch.documents)
    taught_BT = layout.targets(batch.labels, steps=1) >= 0
    if PAIRS in batch.columns:
        taught_BT &= layout.ahead(batch.columns[PAIRS], steps=1, beyond=0) > 0
    return taught_BT


def _by_document(values_BT: Tensor, batch: Batch) -> Tensor:
    """The sum of the values of each document `[N]`, row by row; 0 for document numbers that a row lacks."""
    most = int(batch.documents.max()) + 1
    sums = torch.zeros(len(batch.documents), most, dtype=torch.float64)
    sums.scatter_add_(1, batch.documents, values_BT.double())
    return sums[:, 1:].flatten()
