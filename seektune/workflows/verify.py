"""The command `verify`: compares two checkpoints, in any formats, tensor by tensor."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from seektune.checkpoint import locate
from seektune.checkpoint.compare import STATUSES, Comparison, compare
from seektune.io.console import byte_bar, say, size
from seektune.io.text import on_one_line

SHOWN = 20
"""Differing tensors in the table; `--json` has all."""


def verify(a: str, b: str, tolerance: float = 0.0, as_json: bool = False) -> bool:
    """Compare two folders or Hub ids and print the result; returns whether all tensors are equal.

    Args:
        a: a checkpoint.
        b: another.
        tolerance: largest absolute difference of decoded values that counts as equal.
        as_json: print JSON instead of a table.

    Raises:
        ValueError: a checkpoint cannot be read, or the tolerance is negative or not finite.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance {tolerance:g} must be a finite number of at least 0")
    left = locate(a)
    right = locate(b)
    with byte_bar("comparing") as progress:
        found = list(compare(left, right, tolerance, progress))
    if as_json:
        say(json.dumps(_as_values(a, b, tolerance, found), indent=2, allow_nan=False))
    else:
        _table(found)
    return all(each.equal for each in found)


def _as_values(a: str, b: str, tolerance: float, found: Sequence[Comparison]) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "tolerance": tolerance,
        "equal": all(each.equal for each in found),
        "counts": {
            status: {"tensors": len(those), "bytes": sum(each.bytes for each in those)}
            for status in STATUSES
            if (those := [each for each in found if each.status == status])
        },
        # JSON has no infinity: null where one side is NaN or infinite, and where nothing can be compared
        "different": [
            {**asdict(each), "difference": each.difference if math.isfinite(each.difference or 0) else None}
            for each in found
            if not each.equal
        ],
    }


def _table(found: Sequence[Comparison]) -> None:
    say(f"{'status':<17}{'tensors':>9}{'bytes':>12}")
    for status in STATUSES:
        if those := [each for each in found if each.status == status]:
            say(f"{status:<17}{len(those):>9,}{size(sum(each.bytes for each in those)):>12}")
    different = [each for each in found if not each.equal]
    for each in different[:SHOWN]:
        say(f"{on_one_line(each.name)}: {_in_words(each)}")
    if len(different) > SHOWN:
        say(f"... and {len(different) - SHOWN:,} more (--json lists all)")
    say(
        f"{len(different):,} of {len(found):,} tensors differ" if different else f"all {len(found):,} tensors are equal"
    )


def _in_words(each: Comparison) -> str:
    if each.status == "other shape":
        return f"{each.a} in A, {each.b} in B"
    if each.difference is None:
        return f"{each.status} ({each.a or each.b})"
    kinds = each.a if each.a == each.b else f"{each.a} in A, {each.b} in B"
    return f"differs by up to {each.difference:.3g} ({kinds})"
