"""Losses of small runs as they were: to the digit on the processor that recorded them, within rounding on others."""

from pathlib import Path

import pytest

from .runs import CASES, HERE, processor, run

TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
"""Relative; over 20 steps another order of sums moves losses by up to this."""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_recorded(case: str, tmp_path: Path) -> None:
    recorded_on, *golden = (HERE / f"{case}.txt").read_text().splitlines()
    found = run(case, tmp_path).splitlines()
    if recorded_on == f"processor {processor()}":
        assert found == golden
        return
    tolerance = TOLERANCE["bf16" if "bf16" in case else "fp32"]
    for now, before in zip(found, golden, strict=True):
        assert _numbers(now) == pytest.approx(_numbers(before), rel=tolerance), (now, before)


def _numbers(line: str) -> list[float]:
    """Losses of a line; accuracies of eight questions and norms say less and may move more."""
    words = line.split()
    return [float(words[i + 1]) for i, word in enumerate(words) if word == "loss"]
