"""Dotted overrides of the command line: `--section.key=value` or `--section.key value`, on top of a recipe's file."""

import re
from collections.abc import Sequence
from typing import TypeAlias

from seektune.recipe.document import YamlNode, parse, read_scalar, shorten

_NAME = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*", re.ASCII)

KeyPath: TypeAlias = tuple[str, ...]


def read_overrides(words: Sequence[str]) -> dict[KeyPath, YamlNode]:
    """Overrides by the path of keys they set; the last one wins where a key is given twice.

    Raises:
        ValueError: a word is no override, or one has no value.
    """
    overrides: dict[KeyPath, YamlNode] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not _NAME.fullmatch(name):
            raise ValueError(
                f"{shorten(word)} is not an override; write --section.key=value, as in --optimizer.lr=1e-4"
            )
        if not equals and waiting and not waiting[0].startswith("--"):
            value = waiting.pop(0)
        if not value.strip():
            raise ValueError(f"--{shorten(name)} needs a value: --{shorten(name)}=VALUE (null clears a setting)")
        overrides[tuple(name.split("."))] = _read_value(value.strip(), shorten(f"--{name}={value}"))
    return overrides


def apply_overrides(document: YamlNode, overrides: dict[KeyPath, YamlNode]) -> YamlNode:
    """The document with every override in its place; sections that the file lacks are made.

    Raises:
        ValueError: an override goes below a key that holds one value.
    """
    document = _written_out(document)
    for path, entry in overrides.items():
        for end in range(1, len(path)):
            above = document.find(path[:end])
            if above is not None and above.value is not None and not isinstance(above.value, dict):
                raise ValueError(f"{entry.where}: {'.'.join(path[:end])} holds one value here, not a section of keys")
        document = _written_out(document.put(path, entry))
    return document


def _written_out(document: YamlNode) -> YamlNode:
    """`parallel: auto` as the section that it is short for, which overrides may go into."""
    short = document.find(("parallel",))
    return document if short is None or short.value != "auto" else document.put(("parallel", "layout"), short)


def _read_value(text: str, where: str) -> YamlNode:
    """Lists and quoted words are read as YAML; anything else is one bare word, whatever signs it holds."""
    if text[0] in "[\"'":
        entry = parse(text, where, override=True)
        assert entry is not None, "a bracket or quote opens a value"
        return entry
    return YamlNode(read_scalar(text), where, text, override=True)
