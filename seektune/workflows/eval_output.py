"""Prints the scores of one or two models: lines for people, or JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seektune.evaluate.statistics import Change
from seektune.evaluate.task import Metric, TaskScore
from seektune.io.console import say


@dataclass(frozen=True)
class Evaluated:
    """A model and its scores."""

    name: str
    adapter: Path | None
    scores: Mapping[str, TaskScore]
    """By task."""


def say_json(first: Evaluated, second: Evaluated | None) -> None:
    """Print a JSON object: of one task its values, of several `tasks` with the values of each."""
    head: dict[str, Any] = {"model": first.name}
    if first.adapter is not None:
        head["adapter"] = str(first.adapter)
    values = {task: _values(task, score, second) for task, score in first.scores.items()}
    if len(values) == 1:
        ((task, only),) = values.items()
        say(json.dumps({**head, "task": task, **only}, indent=2, allow_nan=False))
    else:
        say(json.dumps({**head, "tasks": values}, indent=2, allow_nan=False))


def _values(task: str, score: TaskScore, second: Evaluated | None) -> dict[str, Any]:
    if second is None:
        return score.to_dict()
    other = second.scores[task]
    found = {name: asdict(change) for name, change in score.since(other).items()}
    return {**score.to_dict(), "against": {"model": second.name, **other.to_dict(), "difference": found}}


def say_lines(first: Evaluated, second: Evaluated | None) -> None:
    """Print a line for each metric, under the task's name if there are several."""
    for task, score in first.scores.items():
        if len(first.scores) > 1:
            say(f"{task}")
        _say_score(score, {})
        if second is not None:
            other = second.scores[task]
            changes = score.since(other)
            metrics = score.task.metrics.items()
            said = {metric.label: _in_words(metric, changes[name]) for name, metric in metrics if name in changes}
            say(f"against {second.name}:")
            _say_score(other, said)


def _say_score(score: TaskScore, said: Mapping[str, str]) -> None:
    for label, value in score.lines():
        say(f"{label + ':':<15} {value}{said.get(label, '')}")


def _in_words(metric: Metric, change: Change) -> str:
    """The first model's difference to the second, with interval and p-value."""
    if metric.percent:
        size = f"{100 * change.difference:+.2f} points ({100 * change.low:+.2f} to {100 * change.high:+.2f})"
    else:
        size = f"{change.difference:+.4f} ({change.low:+.4f} to {change.high:+.4f})"
    return f"; the first is {size}, p = {change.p_value:.3g}"
