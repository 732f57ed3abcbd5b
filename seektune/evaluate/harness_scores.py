"""Results of lm-evaluation-harness as scores: metrics with intervals, and outcomes by example for comparisons."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import Metric, Outcomes, TaskInfo, TaskScore

REACH = 1.96
"""Half of a 95 % interval, in standard errors."""
NO_FILTER = "none"
"""The harness's name of answers that are scored as they are."""


@dataclass(frozen=True)
class HarnessResults:
    """What the harness's `simple_evaluate` returns."""

    raw: Mapping[str, Any]

    def score(self, name: str, title: str) -> TaskScore:
        """The score of a task or a group of tasks.

        A metric that is the mean over the examples, of all tasks of a group together, can be compared example by
        example.

        Args:
            name: of the task or group, as the harness has it.
            title: to display.
        """
        found = dict(self._estimates(name))
        outcomes: dict[str, Outcomes] = {}
        for label, (key, estimate) in found.items():
            values = self._values(name, key)
            if values and math.isclose(math.fsum(values) / len(values), estimate.value, abs_tol=1e-9):
                outcomes |= _outcomes(label, values)
        info = unknown_scores(name, title)
        metrics = {label: Metric.found(label, outcomes) for label in found}
        estimates = {label: estimate for label, (_, estimate) in found.items()}
        return TaskScore(replace(info, metrics=metrics), estimates, {"n": self._number(name)}, outcomes)

    def _leaves(self, name: str) -> Sequence[str]:
        """The tasks of a group and of its groups; of a task, itself."""
        inner = self.raw.get("group_subtasks", {}).get(name) or ()
        return [leaf for each in inner for leaf in self._leaves(each)] if inner else [name]

    def _number(self, name: str) -> int:
        return sum(self.raw["n-samples"][leaf]["effective"] for leaf in self._leaves(name))

    def _estimates(self, name: str) -> Iterator[tuple[str, tuple[str, Estimate]]]:
        """Metrics as the harness names them, `acc,none` without `,none`; each with its whole name.

        Values that are not finite are left out; an error that is not is 0.
        """
        results = self.raw["results"].get(name) or self.raw["groups"][name]
        finite = {key: value for key, value in results.items() if isinstance(value, float) and math.isfinite(value)}
        values = {key: value for key, value in finite.items() if "_stderr," not in key}
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            reach = REACH * finite.get(f"{metric}_stderr,{kind}", 0.0)
            yield key.removesuffix(f",{NO_FILTER}"), (key, Estimate(value, value - reach, value + reach))

    def _values(self, name: str, key: str) -> list[float]:
        """What each example contributes to a metric, in the order of the examples; empty if any is not a number."""
        metric, _, kind = key.partition(",")
        samples = self.raw.get("samples", {})
        rows = [
            row
            for leaf in self._leaves(name)
            for row in sorted(samples.get(leaf, ()), key=lambda row: row["doc_id"])
            if row["filter"] == kind
        ]
        values = [row.get(metric) for row in rows]
        numbers = [float(value) for value in values if isinstance(value, bool | int | float)]
        return numbers if len(numbers) == len(values) else []


def _outcomes(label: str, values: Sequence[float]) -> dict[str, Outcomes]:
    if set(values) <= {0.0, 1.0}:
        return {f"{label}_outcomes": "".join(str(int(value)) for value in values)}
    return {f"{label}_outcomes": [*values], f"{label}_sizes": [1.0] * len(values)}


def unknown_scores(name: str, title: str) -> TaskInfo:
    """Labels of a task or group that did not run yet: its metrics are known afterwards.

    Args:
        name: as the harness has it.
        title: to display.
    """
    return TaskInfo(
        title,
        title,
        items="examples",
        about=f"examples, run by lm-evaluation-harness ({name})",
        test="McNemar, exact; random signs of the examples' differences for scores other than 0 and 1",
        metrics={},
        facts=(("examples", "{n:,}"),),
    )
