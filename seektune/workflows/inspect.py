"""The verb `inspect`: the card of a checkpoint folder, read in seconds, and everything that is wrong with it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from seektune.workflows.card import Architecture, Card, read_card
from seektune.workflows.console import counted, listed, many, say, size


def inspect(folder: Path, as_json: bool = False) -> bool:
    """Print a checkpoint's card; the answer is whether it is complete.

    Raises:
        ValueError: it is no folder.
    """
    card = read_card(folder)
    if as_json:
        say(json.dumps(card.to_dict(), indent=2))
        return card.complete
    for name, value in _lines(card):
        say(f"{f'{name}:':<13}{value}" if name else value)
    return card.complete


def _lines(card: Card) -> Iterator[tuple[str, str]]:
    yield "checkpoint", card.folder
    if card.architecture is not None:
        yield from _promised(card.architecture)
    yield "format", card.format
    total = sum(amount["bytes"] for amount in card.dtypes.values())
    yield "on disk", f"{counted(card.tensors, 'tensor')} in {counted(len(card.files), 'file')}, {size(total)}"
    for dtype, amount in card.dtypes.items():
        yield "", f"  {dtype:<11}{counted(amount['tensors'], 'tensor'):<16}{size(amount['bytes']):>12}"
    yield from (("note", note) for note in card.notes)
    yield from (("problem", problem) for problem in card.problems)
    for what, names in (("missing", card.missing), ("extra", card.extra), ("wrong", card.wrong)):
        yield from _counted(what, names)
    if card.complete:
        yield "complete", "every tensor that config.json promises is here in its shape, and no other"


def _promised(architecture: Architecture) -> Iterator[tuple[str, str]]:
    count = architecture.parameters
    yield "variant", architecture.variant
    yield "layers", f"{sum(architecture.layers.values())}: {_numbers(architecture.layers)}"
    yield "gates", _numbers(architecture.gates)
    yield "MTP", counted(architecture.mtp_blocks, "block")
    yield (
        "parameters",
        f"{many(count['main'])} main, {many(count['mtp'])} MTP; {many(count['active'])} active per token",
    )


def _numbers(parts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in parts.items())


def _counted(what: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    if names:
        yield what, f"{counted(len(names), 'tensor')}: {listed(names)}"
