"""Made sums as prompts with completions, for tries of reward training without data of one's own.

The rows are this project's own and may be used for anything (CC0-1.0).
"""

import random
from pathlib import Path
from typing import Any

from seektune.data.datasets.synthetic_chat import write_splits
from seektune.io.jsonl import as_line, read_jsonl

LARGEST = 49
"""The largest summand."""
TAUGHT = "taught.jsonl"
"""File of the training rows of which every second has a wrong last digit."""


def synthetic_sums(seed: int = 0) -> list[dict[str, Any]]:
    """Every sum of two numbers up to 49, in an order of the seed."""
    numbers = range(LARGEST + 1)
    rows = [
        {"prompt": f"{_spaced(a)} + {_spaced(b)} =", "completion": f" {_spaced(a + b)}"}
        for a in numbers
        for b in numbers
    ]
    random.Random(seed).shuffle(rows)
    return rows


def half_wrong(rows: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """The rows, every second with another last digit: a model that learns them is wrong in half of its answers."""
    generator = random.Random(seed)
    return [_with_wrong_digit(row, generator) if number % 2 else row for number, row in enumerate(rows)]


def write_synthetic_sums(folder: Path, seed: int = 0) -> tuple[int, int]:
    """Write `train.jsonl`, `validation.jsonl` and `taught.jsonl` into an existing folder; the rows of the first two.

    Raises:
        OSError: a file could not be written.
    """
    counts = write_splits(folder, synthetic_sums(seed))
    training = [row for _, row in read_jsonl(folder / "train.jsonl")]
    (folder / TAUGHT).write_text("".join(map(as_line, half_wrong(training, seed))), encoding="utf-8")
    return counts


def _with_wrong_digit(row: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    right = row["completion"]
    wrong = generator.choice([digit for digit in "0123456789" if digit != right[-1]])
    return {**row, "completion": right[:-1] + wrong}


def _spaced(number: int) -> str:
    """The digits of a number, each of which becomes a token."""
    return " ".join(str(number))
