"""The section of a run's report on the noise scale of its gradients."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from seektune.train.noise_scale import SIGNAL, VARIANCE
from seektune.train.report_html import section, table

HEAD = ("measured steps", "variance per token", "squared gradient", "noise scale in tokens", "tokens of a step")


def noise_sections(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """HTML of the section; none if no step was measured."""
    measured = [line for line in steps if VARIANCE in line]
    middle = len(measured) // 2
    rows = [_row(part) for part in (measured[:middle], measured[middle:]) if part]
    return [section("Gradient noise", table(rows, HEAD))] if rows else []


def _row(part: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Means over some steps; the noise scale is that of the means."""
    variance = fmean(line[VARIANCE] for line in part)
    signal = fmean(line[SIGNAL] for line in part)
    scale = f"{variance / signal:,.0f}" if signal > 0 else "too noisy to tell"
    tokens = fmean(line["taught_tokens"] for line in part)
    return f"{part[0]['step']} to {part[-1]['step']}", f"{variance:.4g}", f"{signal:.4g}", scale, f"{tokens:,.0f}"
