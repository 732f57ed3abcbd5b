"""What an evaluation task is, and its results: numbers with intervals, and outcomes for a comparison of two models."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias

from seektune.data.datasets.dataset import DataCard
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.likelihood import Progress, Scorer
from seektune.evaluate.statistics import Change, Estimate

Outcomes: TypeAlias = str | list[int] | list[float]
"""One value for each item: signs 1 and 0 for right and wrong answers, or numbers."""


@dataclass(frozen=True)
class Baseline:
    """The result of a simple strategy, to compare with."""

    label: str
    value: float


@dataclass(frozen=True)
class Metric:
    """How a number of a task is shown and compared."""

    label: str
    form: str = ".4f"
    """Format of the value; one that ends with % makes it a share of 1."""
    unit: str = ""
    """Follows the value."""
    baseline: Baseline | None = None
    outcomes: str | None = None
    """The outcomes that it is a mean of, by their name in a score; None if it cannot be compared by items."""
    sizes: str | None = None
    """Outcomes that those are divided by, such as tokens of an item; None if each item counts once."""
    headline: bool = True
    """Whether a run's summary and the first lines of its report show it."""

    @property
    def percent(self) -> bool:
        """Whether it is a share of 1."""
        return self.form.endswith("%")

    def text(self, found: Estimate) -> str:
        """The value, its interval and its unit."""
        return f"{found.value:{self.form}} ({found.low:{self.form}} to {found.high:{self.form}}) {self.unit}".rstrip()

    def change(self, before: "TaskScore", after: "TaskScore") -> Change | None:
        """What changed between two scores on the same items, if outcomes say it."""
        if self.outcomes is None:
            return None
        first = before.outcomes[self.outcomes]
        second = after.outcomes[self.outcomes]
        if self.sizes is None:
            return Change.of_shares([sign == "1" for sign in first], [sign == "1" for sign in second])
        sizes = after.outcomes[self.sizes]
        return Change.of_ratios([*map(float, first)], [*map(float, second)], [*map(float, sizes)])


@dataclass(frozen=True)
class TaskInfo:
    """What readers of a task's scores are told."""

    name: str
    title: str
    """Its name in sentences."""
    items: str
    """What it has many of, such as questions."""
    about: str
    """What the items are and how they are scored; follows their number."""
    test: str
    """The test behind the p-values of `Metric.change`."""
    metrics: Mapping[str, Metric]
    """Those that are shown, by their name in a score."""
    facts: tuple[tuple[str, str], ...] = ()
    """Label and format of further lines, made of the `counts` of a score."""
    data: DataCard | None = None
    """The dataset, for model cards."""


@dataclass(frozen=True)
class TaskScore:
    """What a task measured."""

    task: TaskInfo
    metrics: Mapping[str, Estimate]
    counts: Mapping[str, float]
    """`n`, the number of items, and other plain numbers."""
    outcomes: Mapping[str, Outcomes]
    """By item, for `Metric.change`."""

    @property
    def n(self) -> int:
        """Number of items."""
        return int(self.counts["n"])

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a JSON file."""
        return {**{name: asdict(found) for name, found in self.metrics.items()}, **self.counts, **self.outcomes}

    @classmethod
    def from_dict(cls, task: TaskInfo, values: Mapping[str, Any]) -> "TaskScore":
        """Back from `to_dict()`."""
        return cls(
            task,
            {name: Estimate(**value) for name, value in values.items() if isinstance(value, dict)},
            {name: value for name, value in values.items() if isinstance(value, int | float)},
            {name: value for name, value in values.items() if isinstance(value, str | list)},
        )

    def since(self, before: "TaskScore") -> dict[str, Change]:
        """What changed from another model's score on the same items to this one, by metric."""
        found = {name: metric.change(before, self) for name, metric in self.task.metrics.items()}
        return {name: change for name, change in found.items() if change is not None}

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of everything but the outcomes."""
        facts = [(label, form.format(**self.counts)) for label, form in self.task.facts]
        return [*facts, *((each.label, each.text(self.metrics[name])) for name, each in self.task.metrics.items())]


class Task(Protocol):
    """Something that measures models."""

    @property
    def info(self) -> TaskInfo:
        """What its scores mean."""
        ...

    def run(
        self, model: Scorer, tokenizer: Tokenizer, batch_tokens: int, progress: Progress | None = None
    ) -> TaskScore:
        """Measure a model.

        Args:
            model: on one device or spread over processes.
            tokenizer: the one that it is trained with.
            batch_tokens: most tokens, padding included, of one forward.
            progress: receives, after each forward, how much is done, and of how much.

        Raises:
            ArithmeticError: the model gives no number; the message names the item.
        """
        ...
