"""Dotted command-line overrides of a recipe file: `--section.key=value` or `--section.key value`."""

import re
from collections.abc import Sequence
from typing import TypeAlias

from seektune.recipe.document import YamlNode, parse, read_scalar, shorten

_NAME = re.compile(r"[A-Za-z_][\w-]*(\.([A-Za-z_][\w-]*|\d{1,4}))*", re.ASCII)

KeyPath: TypeAlias = tuple[str, ...]


def read_overrides(words: Sequence[str]) -> dict[KeyPath, YamlNode]:
    """Parse overrides, by the path of keys they set; of a key given twice the last value wins.

    Raises:
        ValueError: a word is not an override, or has no value.
    """
    overrides: dict[KeyPath, YamlNode] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not _NAME.fullmatch(name):
            raise ValueError(f"{shorten(word)} is not an override; write {meant_by(word)}")
        if not equals and remaining and not remaining[0].startswith("--"):
            value = remaining.pop(0)
        if not value.strip():
            raise ValueError(f"--{shorten(name)} needs a value: --{shorten(name)}=VALUE (null clears a setting)")
        overrides[tuple(name.split("."))] = _read_value(value.strip(), shorten(f"--{name}={value}"))
    return overrides


def meant_by(word: str) -> str:
    """How the override that a word may be is written: with two dashes, if they are what is missing."""
    name, equals, value = word.lstrip("-").partition("=")
    if equals and value and _NAME.fullmatch(name):
        return shorten(f"--{name}={value}")
    return "--section.key=value, as in --optimizer.lr=1e-4"


def apply_overrides(document: YamlNode, overrides: dict[KeyPath, YamlNode]) -> YamlNode:
    """The document with all overrides applied; missing sections are created.

    Raises:
        ValueError: an override sets a key below one that is not a section.
    """
    document = _expand_auto(document)
    for path, entry in overrides.items():
        for end in range(1, len(path)):
            _check_above(document.find(path[:end]), path, end, entry)
        document = _expand_auto(document.put(path, entry))
    return document


def _check_above(above: YamlNode | None, path: KeyPath, end: int, entry: YamlNode) -> None:
    """Check that the next key of an override can be set in the value above it."""
    section = ".".join(path[:end])
    if above is None or above.value is None:
        return
    if isinstance(above.value, list):
        if not path[end].isdecimal():
            meant = ".".join(["--" + section, "0", *path[end:]])
            raise ValueError(f"{entry.where}: {section} is a list here; write {meant} for the first one")
        if above.find((path[end],)) is None:
            raise ValueError(f"{entry.where}: {section} has no entry {path[end]}; it has {len(above.value)}, from 0")
    elif not isinstance(above.value, dict):
        raise ValueError(f"{entry.where}: {section} holds a single value here, not a section of keys")
    elif path[end].isdecimal():
        meant = ".".join(["--" + section, *path[end + 1 :]])
        raise ValueError(f"{entry.where}: {section} is one section here, not a list; write {meant}")


def _expand_auto(document: YamlNode) -> YamlNode:
    """Expand `parallel: auto` to the section it stands for, so that overrides can change its keys."""
    short = document.find(("parallel",))
    return document if short is None or short.value != "auto" else document.put(("parallel", "layout"), short)


def _read_value(text: str, where: str) -> YamlNode:
    """Parse lists and quoted strings as YAML, anything else as one plain scalar with any characters."""
    if text[0] in "[\"'":
        entry = parse(text, where, override=True)
        assert entry is not None, "a bracket or quote begins a value"
        return entry
    return YamlNode(read_scalar(text), where, text, override=True)
