"""A class name stands for one thing."""

import ast
from collections import defaultdict
from pathlib import Path

from .imports import PACKAGE

TWINS = ("kernels/reference", "kernels/eager", "kernels/triton")
"""Twins of one operation may name their private autograd functions alike."""


def test_no_two_classes_have_one_name():
    assert doubled(PACKAGE) == {}


def test_names_that_differ_in_an_underscore_count_and_twins_do_not(tmp_path: Path):
    for file, name in (
        ("a.py", "Reader"),
        ("b.py", "_Reader"),
        ("kernels/eager/x.py", "_Swish"),
        ("kernels/triton/x.py", "_Swish"),
        ("kernels/eager/y.py", "_Norm"),
        ("c.py", "Norm"),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"class {name}:\n    pass\n")
    assert doubled(tmp_path) == {"Norm": ["c.py", "kernels/eager/y.py"], "Reader": ["a.py", "b.py"]}


def doubled(package: Path) -> dict[str, list[str]]:
    """Names of classes, without a leading underscore, that several files define, and those files."""
    found = defaultdict(set)
    for file in sorted(package.rglob("*.py")):
        place = str(file.relative_to(package))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name.removeprefix("_")].add(place)
    return {name: sorted(places) for name, places in found.items() if len(places) > 1 and not _are_twins(places)}


def _are_twins(places: set[str]) -> bool:
    return all(place.startswith(TWINS) for place in places)
