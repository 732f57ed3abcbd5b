"""What a run wrote down, from its folder."""

from pathlib import Path

from seektune.io.jsonl import read_records
from seektune.io.run_files import METRICS, VALIDATION


def losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of every step that was not skipped."""
    return [(line["step"], line["loss"]) for line in read_records(folder / METRICS) if "loss" in line]


def validations(folder: Path) -> list[tuple[int, float]]:
    """Step and validation loss of every validation."""
    return [(line["step"], line["loss"]) for line in read_records(folder / VALIDATION)]
