"""Synthetic HellaSwag rows in the Hub's schema, for tests and trials without a network."""

import random
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from seektune.io.jsonl import as_line

ACTIVITIES = ("Baking bread", "Washing a car", "Playing chess", "Home and Garden", "Planting trees")
PEOPLE = ("a man", "a woman", "the girl", "the boy", "a teacher", "the cook")
ACTS = ("picks up", "looks at", "puts down", "pushes", "carries", "paints")
THINGS = ("a red bucket", "the old ladder", "a loaf of bread", "the white horse", "a wooden box", "the small boat")


def made_hellaswag(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` rows in the Hub's schema; only the right ending mentions the object of the context."""
    generator = random.Random(seed)
    return [_row(generator, i) for i in range(count)]


def write_hellaswag(folder: Path, train: int, validation: int, form: Literal["jsonl", "parquet"] = "jsonl") -> Path:
    """Write a dataset folder with `train` and `validation` synthetic rows; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"train": train, "validation": validation}.items()):
        write_rows(folder / f"{split}.{form}", made_hellaswag(count, seed))
    return folder


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as .jsonl or .parquet, by the file's suffix."""
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(map(as_line, rows)), encoding="utf-8")


def _row(generator: random.Random, index: int) -> dict[str, Any]:
    things = generator.sample(THINGS, 4)
    label = generator.randrange(4)
    ctx_a = f"{generator.choice(PEOPLE).capitalize()} {generator.choice(ACTS)} {things[label]}."
    ctx_b = generator.choice(PEOPLE)
    return {
        "ind": index,
        "activity_label": generator.choice(ACTIVITIES),
        "ctx_a": ctx_a,
        "ctx_b": ctx_b,
        "ctx": f"{ctx_a} {ctx_b}",
        "endings": [f"{generator.choice(ACTS)} {thing} and walks away." for thing in things],
        "label": str(label),
    }
