"""Every message on docs/troubleshooting.md is one that the program can say."""

import ast
import re
from functools import cache

import pytest

from tests.places import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.*?)` \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)


@cache
def sentences() -> tuple[str, ...]:
    """The text of every string in the source; … stands for what is filled in."""
    found = []
    for file in sorted((ROOT / "seektune").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


@pytest.mark.parametrize("message", [message for message, _, _ in ROWS])
def test_a_message_of_the_page_exists(message: str) -> None:
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.DOTALL)
    assert any(pattern.search(sentence) for sentence in sentences())


def test_every_row_has_cause_and_remedy() -> None:
    assert len(ROWS) > 50
    assert all(cause and remedy for _, cause, remedy in ROWS)
    assert len({message for message, _, _ in ROWS}) == len(ROWS)
    assert PAGE.count("\n| `") == len(ROWS)
