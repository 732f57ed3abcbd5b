"""The parts of a stream add up to what the chat format parses from the whole text."""

import pytest

from seektune import parse_message
from seektune.data.chat_format.tokens import EOS
from seektune.serve.output_parser import OutputParser, ParsedDelta
from tests.data.chat_format.cases import calls_text

CALLS = calls_text([("weather", {"city": "Oslo", "days": 2}), ("now", {"zone": "UTC"})])


def heard(text: str, thinking: bool, size: int) -> ParsedDelta:
    splitter, whole = OutputParser(thinking), ParsedDelta()
    for start in range(0, len(text), size):
        whole.add(splitter.feed(text[start : start + size]))
    whole.add(splitter.flush())
    return whole


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        ("Four.", False),
        ("Let me </thin see</think>Four.", True),
        ("</think>Four.\n\n<b>", True),
        (f"Wait.</think>I look.\n\n{CALLS}", True),
        (f"\n\n{CALLS}", False),
        ("", False),
    ],
)
def test_parts_match_parse_message(text: str, thinking: bool, size: int) -> None:
    found, expected = heard(text, thinking, size), parse_message(text + EOS, "thinking" if thinking else "chat")
    assert (found.reasoning, found.content) == (expected["reasoning_content"], expected["content"])
    assert [{**call, "id": None} for call in found.calls] == [{**call, "id": None} for call in expected["tool_calls"]]
    assert len({call["id"] for call in found.calls}) == len(found.calls)


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("text", [f"Yes\n\n{CALLS[:60]}", f"Yes\n\n{CALLS} and more", "Yes\n\n<"])
def test_malformed_tool_call_is_content(text: str, size: int) -> None:
    assert heard(text, False, size) == ParsedDelta(content=text)


def test_unfinished_reasoning_is_reasoning() -> None:
    assert heard("Let me see</thi", True, 2) == ParsedDelta(reasoning="Let me see</thi")


def test_certain_text_is_not_held_back() -> None:
    splitter = OutputParser(thinking=False)
    assert splitter.feed("Yes.") == ParsedDelta(content="Yes.")
    assert splitter.feed("\n") == ParsedDelta()
    assert splitter.feed("No") == ParsedDelta(content="\nNo")
