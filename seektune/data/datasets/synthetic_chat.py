"""Made conversations in OpenAI's form, for tries without data of one's own: questions about simple facts, with answers.

The texts are this project's own and may be used for anything (CC0-1.0).
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seektune.io.jsonl import as_line

LICENSE = "CC0-1.0"
COLOURS = {
    "a banana": "yellow",
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "the sky": "blue",
    "a tomato": "red",
    "a carrot": "orange",
    "a plum": "purple",
    "an elephant": "gray",
    "chocolate": "brown",
}
SOUNDS = {
    "a dog": "barks",
    "a cat": "meows",
    "a cow": "moos",
    "a lion": "roars",
    "a duck": "quacks",
    "a bee": "buzzes",
    "an owl": "hoots",
    "a sheep": "bleats",
    "a pig": "grunts",
    "a snake": "hisses",
}
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Spain": "Madrid",
    "Cuba": "Havana",
    "Kenya": "Nairobi",
    "Greece": "Athens",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "early": "late",
    "open": "closed",
    "full": "empty",
    "old": "new",
    "hard": "soft",
    "dark": "light",
    "loud": "quiet",
}
SUMS = {f"{a} plus {b}": str(a + b) for a in range(1, 6) for b in range(1, 5)}
FACTS: tuple[tuple[dict[str, str], tuple[str, ...], str], ...] = (
    (COLOURS, ("What colour is {}?", "Which colour has {}?", "Tell me the colour of {}."), "The colour of {} is {}."),
    (SOUNDS, ("What does {} do?", "Which sound does {} make?", "How does {} sound?"), "It is {} that {}."),
    (CAPITALS, ("What is the capital of {}?", "Name the capital of {}.", "{}: which capital?"), "In {} it is {}."),
    (OPPOSITES, ("What is the opposite of {}?", "Say the contrary of {}.", "Not {}, but?"), "Not {} but {}."),
    (SUMS, ("What is {}?", "How much is {}?", "Add: {}."), "{} is {}."),
)
"""Answers by subject, the ways to ask for them, and the sentence that answers."""
SHORT = "Answer with one word."
"""System prompt of the rows whose answers are not sentences."""
HELD_OUT = 10
"""Every tenth row is held out."""


def synthetic_chat(seed: int = 0) -> list[dict[str, Any]]:
    """All conversations, in an order of the seed: each fact in each wording, answered by a sentence and by a word, and
    as many conversations of two questions."""
    generator = random.Random(seed)
    single = list(_questions())
    plain = [messages for system, messages in single if system is None]
    second = generator.sample(plain, len(plain))
    pairs = [(None, [*one, *two]) for one, two in zip(plain, second, strict=True)]
    rows = [_row(system, messages) for system, messages in (*single, *pairs)]
    generator.shuffle(rows)
    return rows


def write_synthetic_chat(folder: Path, seed: int = 0) -> tuple[int, int]:
    """Write `train.jsonl` and `validation.jsonl` into an existing folder; returns the number of rows of each.

    Raises:
        OSError: a file could not be written.
    """
    return write_splits(folder, synthetic_chat(seed))


def write_splits(folder: Path, rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """As `write_synthetic_chat`, of any rows."""
    held_out = rows[::HELD_OUT]
    training = [row for i, row in enumerate(rows) if i % HELD_OUT]
    for name, part in (("train", training), ("validation", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(map(as_line, part)), encoding="utf-8")
    return len(training), len(held_out)


def _questions() -> Iterator[tuple[str | None, list[dict[str, str]]]]:
    for answers, wordings, sentence in FACTS:
        for subject, answer in answers.items():
            for wording in wordings:
                question = _capital(wording.format(subject))
                yield None, _turn(question, _capital(sentence.format(subject, answer)))
                yield SHORT, _turn(question, f"{_capital(answer)}.")


def _turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _row(system: str | None, messages: list[dict[str, str]]) -> dict[str, Any]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*first, *messages]}
