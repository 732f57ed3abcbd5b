"""Made preferences, for tries without data of one's own: questions about simple facts, each with two answers.

The texts are this project's own and may be used for anything (CC0-1.0).
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seektune.data.datasets.synthetic_chat import FACTS, write_splits


def synthetic_preferences(seed: int = 0) -> list[dict[str, Any]]:
    """All preferences, in an order of the seed: a right sentence is chosen over a wrong one, and over a bare word."""
    generator = random.Random(seed)
    rows = list(_rows(generator))
    generator.shuffle(rows)
    return rows


def write_synthetic_preferences(folder: Path, seed: int = 0) -> tuple[int, int]:
    """Write `train.jsonl` and `validation.jsonl` into an existing folder; returns the number of rows of each.

    Raises:
        OSError: a file could not be written.
    """
    return write_splits(folder, synthetic_preferences(seed))


def _rows(generator: random.Random) -> Iterator[dict[str, Any]]:
    for answers, wordings, sentence in FACTS:
        for subject, answer in answers.items():
            for wording in wordings:
                wrong = generator.choice([other for other in answers.values() if other != answer])
                chosen = sentence.format(subject, answer)
                for rejected in (sentence.format(subject, wrong), f"{answer}."):
                    yield _row(wording.format(subject), chosen, rejected)


def _row(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    texts = [text[0].upper() + text[1:] for text in (question, chosen, rejected)]
    roles = ("user", "assistant", "assistant")
    messages = [[{"role": role, "content": text}] for role, text in zip(roles, texts, strict=True)]
    return dict(zip(("prompt", "chosen", "rejected"), messages, strict=True))
