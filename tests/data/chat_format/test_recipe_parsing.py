"""Our parsers against that of DeepSeek's library: equal, or different for a reason that docs/chat-format.md names."""

from typing import Any

import pytest

from seektune import parse_message
from seektune.data.chat_format.encodings import ENCODINGS, EncodingName
from seektune.data.chat_format.tokens import EOS
from seektune.serve.output_parser import OutputParser
from tests.places import CHAT_ENCODING

from .recipe import recipe_cases

pytestmark = pytest.mark.skipif(not CHAT_ENCODING.is_dir(), reason="the official cases are not here")

LINE_ENDS = {"line ends at the edges", "chat, line ends"}
"""We keep line ends at the start of reasoning and answer, which the library removes."""
OPTIONS = {
    "tool calls not parsed",
    "starts inside the calls",
    "JSON answer in a fence with text around",
    "JSON answer with text around",
    "stop sequence",
}
"""Made with options of the library's parser that ours lack."""
CUT_OFF = {"no end of reasoning", "nothing", "length inside reasoning"}
"""The library takes what is there; the server does, too."""
SPELLED = {"<think> written by the model", "end of sentence spelled"}
"""Control tokens in a response; the server passes them on as the library does."""
LOST = {
    "second </think> in the answer",
    "chat, </think> in the answer",
    "continuation of the answer, </think>",
    "call inside reasoning",
    "call inside reasoning (V4.1 tags)",
    "text after the calls",
    "text after the calls (V4.1 tags)",
    "call cut off by length",
    "call cut off by length (V4.1 tags)",
    'string="false" that is no JSON',
    "same parameter twice",
    "parameter without string=",
    "opening tag without an end",
    "invoke without name",
    "<｜DSML｜ in the answer that opens nothing",
}
"""The library drops or guesses; the server returns the text unchanged."""


def encoding_of_case(case: dict[str, Any]) -> EncodingName:
    return "v41" if "V4.1" in case["name"] else "0731"


def thinking(case: dict[str, Any]) -> bool:
    return case["options"]["thinking_initial_stage"] in ("reasoning", "reasoning_continuation")


def parsed(case: dict[str, Any]) -> tuple[str, str, list[Any]] | None:
    try:
        mode = "thinking" if thinking(case) else "chat"
        found = parse_message(case["text"] + EOS, mode, encoding_of_case(case))
    except ValueError:
        return None
    return found["reasoning_content"], found["content"], [call["function"] for call in found["tool_calls"]]


def served(case: dict[str, Any]) -> tuple[str, str, list[Any]]:
    parser = OutputParser(thinking(case), ENCODINGS[encoding_of_case(case)].tags)
    parts = parser.feed(case["text"])
    parts.add(parser.flush())
    return parts.reasoning, parts.content, [call["function"] for call in parts.calls]


def expected(case: dict[str, Any]) -> tuple[str, str, list[Any]]:
    message = case["message"]
    return message["reasoning_content"], message["content"], message["tool_calls"]


def test_completions_parse_as_in_the_library_but_for_known_differences() -> None:
    cases = recipe_cases("parsing")
    assert len(cases) == 52
    refused = {case["name"] for case in cases if parsed(case) is None}
    assert refused == CUT_OFF | SPELLED | LOST | {"starts inside the calls"}
    different = {case["name"] for case in cases if parsed(case) not in (None, expected(case))}
    assert different == LINE_ENDS | OPTIONS - {"starts inside the calls"}


def test_streams_parse_as_in_the_library_but_for_known_differences() -> None:
    different = {case["name"] for case in recipe_cases("parsing") if served(case) != expected(case)}
    assert different == LINE_ENDS | OPTIONS | LOST
