"""The interface of evaluation tasks, and their results: metrics with intervals, and outcomes for comparisons."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol, TypeAlias

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
    """How a metric of a task is displayed and compared."""

    label: str
    form: str = ".4f"
    """Format of the value; one that ends with % makes it a share of 1."""
    unit: str = ""
    """Unit, printed after the value."""
    baseline: Baseline | None = None
    outcomes: str | None = None
    """Name of the outcomes whose mean it is; None if it cannot be compared by items."""
    sizes: str | None = None
    """Name of the outcomes that these are divided by, such as tokens; None if each item counts once."""
    headline: bool = True
    """Whether a run's summary and the top of its report show it."""

    @property
    def percent(self) -> bool:
        """Whether the value is a share of 1, printed as a percentage."""
        return self.form.endswith("%")

    def text(self, found: Estimate) -> str:
        """The value, its interval and its unit."""
        return f"{found.value:{self.form}} ({found.low:{self.form}} to {found.high:{self.form}}) {self.unit}".rstrip()

    @classmethod
    def found(cls, name: str, values: Mapping[str, Any]) -> "Metric":
        """A metric that is known once a task ran; its outcomes, if there are any, are `NAME_outcomes` of the values."""
        outcomes = f"{name}_outcomes"
        sizes = f"{name}_sizes"
        return cls(name, outcomes=outcomes if outcomes in values else None, sizes=sizes if sizes in values else None)

    def change(self, before: "TaskScore", after: "TaskScore") -> Change | None:
        """The change between two scores on the same items, or None without outcomes."""
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
    """Labels and descriptions of a task, for reports."""

    name: str
    title: str
    """The display name."""
    items: str
    """Plural noun of the items, such as questions."""
    about: str
    """Description of the items and their scoring, printed after their number."""
    test: str
    """The test behind the p-values of `Metric.change`."""
    metrics: Mapping[str, Metric]
    """The displayed metrics, by their name in a score; empty if they are known once the task ran."""
    facts: tuple[tuple[str, str], ...] = ()
    """Label and format of additional lines, from the `counts` of a score."""
    data: DataCard | None = None
    """The dataset, for model cards."""


@dataclass(frozen=True)
class TaskScore:
    """The result of a task."""

    task: TaskInfo
    metrics: Mapping[str, Estimate]
    counts: Mapping[str, float]
    """`n`, the number of items, and other counts."""
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
        """Back from `to_dict()`; a task without metrics has those that were found."""
        metrics = {name: Estimate(**value) for name, value in values.items() if isinstance(value, dict)}
        return cls(
            task if task.metrics else replace(task, metrics={name: Metric.found(name, values) for name in metrics}),
            metrics,
            {name: value for name, value in values.items() if isinstance(value, int | float)},
            {name: value for name, value in values.items() if isinstance(value, str | list)},
        )

    def since(self, before: "TaskScore") -> dict[str, Change]:
        """The change from another model's score on the same items to this one, by metric."""
        found = {name: metric.change(before, self) for name, metric in self.task.metrics.items()}
        return {name: change for name, change in found.items() if change is not None}

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of everything but the outcomes."""
        facts = [(label, form.format(**self.counts)) for label, form in self.task.facts]
        return [*facts, *((each.label, each.text(self.metrics[name])) for name, each in self.task.metrics.items())]


class Task(Protocol):
    """An evaluation task."""

    decodes: ClassVar[bool]
    """Whether it needs a model that can decode: whole on one device, or on a mesh that cuts no weights but experts."""

    @property
    def info(self) -> TaskInfo:
        """Labels and descriptions of the scores."""
        ...

    def run(
        self, model: Scorer, tokenizer: Tokenizer, batch_tokens: int, progress: Progress | None = None
    ) -> TaskScore:
        """Evaluate a model.

        Args:
            model: on one device or spread over processes.
            tokenizer: the one that it is trained with.
            batch_tokens: most tokens, padding included, of one forward.
            progress: receives, after each forward, how much is done, and of how much.

        Raises:
            ArithmeticError: the model gives no number; the message names the item.
        """
        ...
