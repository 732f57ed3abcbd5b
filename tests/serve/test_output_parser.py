"""What streams to a client is, put together, what the chat format reads out of the whole text."""

import pytest

from seektune import parse_message
from seektune.data.chat_format.tokens import EOS
from seektune.data.chat_format.tool_calls import write_calls
from seektune.serve.output_parser import OutputParser, ParsedDelta

CALLS = write_calls([("weather", {"city": "Oslo", "days": 2}), ("now", {"zone": "UTC"})])


def heard(text: str, thinking: bool, size: int) -> ParsedDelta:
    splitter, whole = OutputParser(thinking), ParsedDelta()
    for start in range(0, len(text), size):
        whole.add(splitter.hear(text[start : start + size]))
    whole.add(splitter.rest())
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
def test_parts_are_those_of_the_format(text: str, thinking: bool, size: int) -> None:
    found, expected = heard(text, thinking, size), parse_message(text + EOS, "thinking" if thinking else "chat")
    assert (found.reasoning, found.content) == (expected["reasoning_content"], expected["content"])
    assert [{**call, "id": None} for call in found.calls] == [{**call, "id": None} for call in expected["tool_calls"]]
    assert len({call["id"] for call in found.calls}) == len(found.calls)


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("text", [f"Yes\n\n{CALLS[:60]}", f"Yes\n\n{CALLS} and more", "Yes\n\n<"])
def test_what_is_no_call_is_text(text: str, size: int) -> None:
    assert heard(text, False, size) == ParsedDelta(content=text)


def test_thoughts_without_an_end_are_thoughts() -> None:
    assert heard("Let me see</thi", True, 2) == ParsedDelta(reasoning="Let me see</thi")


def test_what_is_certain_is_given_at_once() -> None:
    splitter = OutputParser(thinking=False)
    assert splitter.hear("Yes.") == ParsedDelta(content="Yes.")
    assert splitter.hear("\n") == ParsedDelta()
    assert splitter.hear("No") == ParsedDelta(content="\nNo")
