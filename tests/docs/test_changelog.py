"""CHANGELOG.md: its sections, and the new names of its tables, which exist under the old ones' successors."""

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

import pytest

from tests.places import ROOT

PAGE = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
UNRELEASED = PAGE.split("\n## ")[1]
MODULES = re.findall(r"^\| (`seektune\.[^|]*) \| (`seektune\.[^|]*) \|$", UNRELEASED, re.MULTILINE)


def full_names(cell: str) -> Iterator[str]:
    """`a.b.c`, `d` is short for a.b.c and a.b.d."""
    package = ""
    for name in re.findall(r"`([\w.]+)`", cell):
        if name.startswith("seektune."):
            package = name.rpartition(".")[0]
            yield name
        else:
            yield f"{package}.{name}"


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parent, _, last = name.rpartition(".")
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the parent is not a package
        return find_spec(parent) is not None and last in vars(import_module(parent))


def test_unreleased_changes_are_in_the_four_sections() -> None:
    assert UNRELEASED.startswith("Unreleased\n")
    sections = re.findall(r"^### (.+)$", UNRELEASED, re.MULTILINE)
    order = ["Added", "Changed", "Fixed", "Numbers"]
    assert sections == [name for name in order if name in sections]


@pytest.mark.parametrize(("old", "new"), MODULES, ids=lambda cell: cell[:40])
def test_new_modules_exist_and_old_ones_do_not(old: str, new: str) -> None:
    before = [*full_names(old)]
    after = [*full_names(new)]
    assert len(before) == len(after)
    assert [name for name in after if not exists(name)] == []
    assert [name for name in before if exists(name)] == []
