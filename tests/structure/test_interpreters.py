"""Every Python that the package starts leaves the current folder out of its modules."""

import ast
from collections.abc import Iterator
from pathlib import Path

from .imports import PACKAGE

SAFE = ("-P", "-I")
"""Options without which `-m` and `-c` look for modules in the current folder first."""


def starts(text: str) -> Iterator[ast.List | ast.Tuple]:
    """Command lines whose program is this interpreter or one of that name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.List | ast.Tuple) and node.elts:
            program = ast.unparse(node.elts[0])
            if program == "sys.executable" or program.strip("'\"").endswith("python"):
                yield node


def interpreters(package: Path) -> dict[str, bool]:
    """Where an interpreter is started, and whether with such an option as its first argument."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        if "python" not in (text := file.read_text(encoding="utf-8")) and "sys.executable" not in text:
            continue
        for node in starts(text):
            option = node.elts[1] if len(node.elts) > 1 else None
            found[f"{file.name}:{node.lineno}"] = isinstance(option, ast.Constant) and option.value in SAFE
    return found


def test_every_interpreter_is_started_safely() -> None:
    found = interpreters(PACKAGE)
    assert [place for place, safe in found.items() if not safe] == []
    assert len(found) >= 5


def test_an_interpreter_that_is_not_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("run([sys.executable, '-m', 'pip'])\nrun((f'{venv}/bin/python', '-P', '-m', 'a'))\n")
    assert interpreters(tmp_path) == {"a.py:1": False, "a.py:2": True}
