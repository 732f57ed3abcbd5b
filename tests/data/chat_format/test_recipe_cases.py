"""Our text against that of DeepSeek's library: equal, or different for a reason that docs/chat-format.md names."""

from typing import Any

import pytest

from seektune import encode_messages, parse_message
from seektune.data.chat_format.encode import render_messages, render_training_texts
from seektune.data.chat_format.tokens import EOS
from tests.places import CHAT_ENCODING

from .recipe import our_messages, our_options, recipe_cases

pytestmark = pytest.mark.skipif(not CHAT_ENCODING.is_dir(), reason="the official cases are not here")

ALWAYS_A_PROMPT = "the library always asks for a response"
REQUIRED = "tool_choice required is not supported"
NO_OBJECT = "arguments that are not a JSON object are refused"
DIGITS = "integers keep their digits"
SPELLING = "floats are spelled as Python spells them"
OPEN_REASONING = "a response to continue is never inside its reasoning"
SYSTEMS = "the library joins system messages at the front"
TOOLS = "tools are described with the keys that they have"
LINES = "a call without arguments has an empty line"
JSON = "the library has its own sentences for json_object"
REMINDER = "the response's header is before a reminder that follows a question"
EMPTY_REASONING = "a response without reasoning has empty reasoning"
EMPTY_CONTENT = "an empty last message of the user is kept"
HEADERS = "a response after a response has no header"
OLD_REASONING = "the library writes reasoning in chat mode with tools"

DIFFERENT = {
    "0731": {
        "old answer without reasoning, with tools": EMPTY_REASONING,
        "old answer with empty reasoning, with tools": TOOLS,
        "last message is an answer": ALWAYS_A_PROMPT,
        "prefix: reasoning only": OPEN_REASONING,
        "prefix: answer only, no reasoning given": EMPTY_REASONING,
        "no message at all": ALWAYS_A_PROMPT,
        "system alone": ALWAYS_A_PROMPT,
        "consecutive users": EMPTY_CONTENT,
        "consecutive answers": HEADERS,
        "two systems at the start": SYSTEMS,
        "system in the middle": SYSTEMS,
        "system last": SYSTEMS,
        "tools with a system": TOOLS,
        "strict and deferred tools": TOOLS,
        "tool_choice required": REQUIRED,
        "tool_choice required in chat": REQUIRED,
        "one call and its result, chat": OLD_REASONING,
        "two calls, results in another order, empty arguments": LINES,
        "two calls, then an answer and a new question": LINES,
        "argument numbers": SPELLING,
        "arguments that are no object": NO_OBJECT,
        "tools later: system with its own tools": SYSTEMS,
        "tools later: no tools at first": SYSTEMS,
        "json_object": JSON,
        "json_object without a system": JSON,
        "json_object in chat": JSON,
        "json_object with tools": JSON,
        "json schema with tools, effort max": TOOLS,
        "reminder after the user": REMINDER,
        "reminder with tools": REMINDER,
        "control tokens spelled by system and tool result": TOOLS,
    },
    "v41": {
        "last message is an answer": ALWAYS_A_PROMPT,
        "prefix: reasoning only": OPEN_REASONING,
        "tool_choice required": REQUIRED,
        "tool_choice required in chat": REQUIRED,
        "argument numbers": DIGITS,
        "arguments that are no object": NO_OBJECT,
    },
}


def rendered(case: dict[str, Any]) -> str:
    try:
        return encode_messages(our_messages(case), **our_options(case))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("encoding", ["0731", "v41"])
def test_prompts_equal_the_library_but_for_known_differences(encoding: str) -> None:
    cases = recipe_cases("render", encoding)
    assert len(cases) == 61
    assert {case["name"] for case in cases if rendered(case) != case["prompt"]} == set(DIFFERENT[encoding])


def test_prompts_equal_the_library_wherever_the_encoder_beside_the_weights_does() -> None:
    agreeing = [case for case in recipe_cases("render", "0731") if case["repository_encoder_agrees"]]
    assert len(agreeing) == 29
    for case in agreeing:
        assert rendered(case) == case["prompt"], case["name"]


@pytest.mark.parametrize("encoding", ["0731", "v41"])
def test_control_tokens_are_where_the_library_has_them(encoding: str) -> None:
    for case in recipe_cases("render", encoding):
        if case["name"] not in DIFFERENT[encoding]:
            found = render_messages(our_messages(case), **our_options(case))
            assert found.control_ranges() == [tuple(each) for each in case["special_ranges"]], case["name"]


@pytest.mark.parametrize(
    ("encoding", "different"), [("0731", {"two calls, answer, new question", "calls, chat"}), ("v41", set())]
)
def test_training_completions_equal_the_library(encoding: str, different: set[str]) -> None:
    found = set()
    count = 0
    for case in recipe_cases("training", encoding):
        messages, options = our_messages(case), our_options(case)
        added = len(messages) - len(case["messages"])
        for example in case["examples"]:
            text = render_messages(messages[: added + example["message"] + 1], **options)
            first = max(i for i, piece in enumerate(text.pieces) if not piece.taught) + 1
            completion = "".join(piece.text for piece in text.pieces[first:])
            count += 1
            if text.text[: -len(completion)] != example["prompt"] or completion != example["completion"]:
                found.add(case["name"])
            assert (
                parse_message(example["completion"], options["thinking_mode"], encoding)["content"]
                == (case["messages"][example["message"]]["content"])
            )
    assert count == 21
    assert found == different


@pytest.mark.parametrize("encoding", ["0731", "v41"])
def test_a_conversation_is_one_training_text_where_the_library_has_one(encoding: str) -> None:
    for case in recipe_cases("training", encoding):
        texts = render_training_texts(our_messages(case), **our_options(case))
        assert len(texts) == (1 if case["one_text"] else len(case["examples"])), case["name"]
        taught = sum(piece.taught and piece.text == EOS for text in texts for piece in text.pieces)
        assert taught == len(case["examples"]), case["name"]
