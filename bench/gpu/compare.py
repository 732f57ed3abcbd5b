"""Compares two results number by number."""

from collections.abc import Iterator
from typing import Any

SAME = 0.03
"""Relative change below which two times are the same."""


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """Every number that the parts of a result found, by its path."""
    return {
        path: value
        for name, outcome in result["parts"].items()
        if "found" in outcome
        for path, value in _leaves(name, outcome["found"])
    }


def _leaves(path: str, found: Any) -> Iterator[tuple[str, float]]:
    if isinstance(found, dict):
        for name, each in found.items():
            yield from _leaves(f"{path} / {name}", each)
    elif isinstance(found, list):
        for number, each in enumerate(found):
            yield from _leaves(f"{path} / {number}", each)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield path, float(found)


def compared(result: dict[str, Any], before: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers that both have and that changed: before, now, and now over before."""
    now = numbers(result)
    was = numbers(before)
    both = {path: (was[path], now[path]) for path in now if was.get(path)}
    return {
        path: {"before": old, "now": new, "ratio": round(new / old, 3)}
        for path, (old, new) in both.items()
        if abs(new / old - 1) > SAME
    }


def lines(changes: dict[str, dict[str, float]]) -> Iterator[str]:
    """A line for each change."""
    for path, each in changes.items():
        yield f"{path}: {each['before']:g} -> {each['now']:g} ({each['ratio']:.2f}x)"
