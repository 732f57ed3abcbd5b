"""What a run wrote down, from its folder."""

from pathlib import Path
from typing import Any

from seektune.io.jsonl import read_records
from seektune.io.run_files import METRICS, VALIDATION

TIMED = ("seconds", "tokens_per_s", "memory_gb", "rollout_seconds")
"""What differs between equal runs."""


def untimed(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a log, without what differs between equal runs."""
    return [{key: x for key, x in line.items() if key not in TIMED} for line in read_records(folder / name)]


def losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of every step that was not skipped."""
    return [(line["step"], line["loss"]) for line in read_records(folder / METRICS) if "loss" in line]


def validations(folder: Path) -> list[tuple[int, float]]:
    """Step and validation loss of every validation."""
    return [(line["step"], line["loss"]) for line in read_records(folder / VALIDATION)]
