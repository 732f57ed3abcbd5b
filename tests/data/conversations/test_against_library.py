"""What `data preview` says of DeepSeek's library: the same text, or where it differs."""

from typing import Any

import pytest

from seektune.data.conversations import library
from seektune.data.conversations.forms import read_conversation
from seektune.data.conversations.library import LibraryComparison, compare_with_library
from seektune.data.conversations.teaching import Teaching

from .rows import CALLS, REASONED, ROWS, WEATHER, answer, user

ENCODINGS: Any = ("preview", "0731", "v41")


def compared(row: dict[str, Any], encoding: Any, **settings: Any) -> LibraryComparison:
    pytest.importorskip("deepseek_recipe", reason="deepseek-recipe is not installed")
    teaching = Teaching(encoding, **settings)
    conversation = read_conversation(row, {})
    found = compare_with_library(conversation, teaching, teaching.texts(conversation))
    assert found is not None
    return found


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("mode", ["auto", "chat", "thinking"])
@pytest.mark.parametrize("name", ["plain", "system", "reasoned"])
def test_rows_that_both_write_alike(name: str, mode: str, encoding: str) -> None:
    found = compared(ROWS[name], encoding, thinking=mode)
    assert (found.differences, found.responses) == ([], 1 if name == "plain" else 2)


@pytest.mark.parametrize(("encoding", "different"), [("preview", 1), ("0731", 1), ("v41", 0)])
def test_a_call_without_arguments_is_written_otherwise(encoding: str, different: int) -> None:
    found = compared(CALLS, encoding, thinking="thinking")
    assert (len(found.differences), found.responses) == (different, 3)
    if different:
        assert found.differences[0].startswith("messages[6] (assistant): here ")
        assert "the library writes" in found.differences[0]


@pytest.mark.parametrize(("encoding", "effort"), [("preview", "max"), ("0731", "max"), ("v41", "low")])
def test_efforts_have_the_librarys_names(encoding: str, effort: str) -> None:
    assert compared(REASONED, encoding, reasoning_effort=effort).differences == []


def test_a_system_column_and_tools_are_compared_too() -> None:
    row = {"messages": [user("a"), answer("b")], "system": "Be brief.", "tools": [WEATHER]}
    assert compared(row, "0731").differences == []


def test_what_the_library_does_not_have_is_said() -> None:
    row = {"messages": [{"role": "developer", "content": "d"}, answer("b")]}
    (line,) = compared(row, "0731").differences
    assert line == "messages[1] (assistant): the library cannot write it (it has no role developer)"


def test_without_the_library_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "MODULE", "deepseek_recipe_that_is_not_here")
    teaching = Teaching("preview")
    conversation = read_conversation(REASONED, {})
    assert compare_with_library(conversation, teaching, teaching.texts(conversation)) is None
