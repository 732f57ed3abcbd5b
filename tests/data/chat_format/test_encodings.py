"""What the encodings differ in, in conversations of our own; the official cases are in test_recipe_cases.py."""

import random
from typing import Any

import pytest

from seektune import encode_messages, parse_message
from seektune.data.chat_format.encodings import ENCODINGS, EncodingName, find_encoding

from .cases import ASSISTANT, BOS, EOS, TOOL, USER, made_answer, tool_call

SYSTEM = "<｜System｜>"
ASK: dict[str, Any] = {"role": "user", "content": "q"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "a", "reasoning_content": "r"}
RULES: dict[str, Any] = {"role": "system", "content": "s"}
MAXIMUM = ENCODINGS["preview"].efforts["max"]
BEYOND = ENCODINGS["0731"].efforts["max"]


def numbered(number: int) -> str:
    return f"Reasoning Effort: {number} (range 1-100, the higher the value, the more thorough the reasoning)\n\n"


@pytest.mark.parametrize(
    ("encoding", "effort", "text"),
    [
        ("preview", None, ""),
        ("preview", "high", ""),
        ("preview", "max", MAXIMUM),
        ("0731", None, ""),
        ("0731", "low", ""),
        ("0731", "high", MAXIMUM),
        ("0731", "max", BEYOND),
        ("v41", None, SYSTEM + numbered(75)),
        ("v41", "low", SYSTEM + numbered(50)),
        ("v41", "high", SYSTEM + numbered(75)),
        ("v41", "max", SYSTEM + numbered(100)),
    ],
)
def test_an_effort_is_written_first_in_thinking_mode(encoding: EncodingName, effort: str | None, text: str) -> None:
    found = encode_messages([ASK], "thinking", reasoning_effort=effort, encoding=encoding)
    assert found == f"{BOS}{text}{USER}q{ASSISTANT}<think>"
    chat = encode_messages([ASK], "chat", reasoning_effort=effort, encoding=encoding)
    assert chat == f"{BOS}{USER}q{ASSISTANT}</think>"
    with_system = encode_messages([RULES, ASK], "thinking", reasoning_effort=effort, encoding=encoding)
    assert with_system == f"{BOS}{text}s{USER}q{ASSISTANT}<think>"


def test_the_texts_of_efforts_differ() -> None:
    assert MAXIMUM.startswith("Reasoning Effort: Absolute maximum with no shortcuts permitted.\n")
    assert BEYOND.startswith("Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n")


@pytest.mark.parametrize(
    ("encoding", "effort"), [("preview", "low"), ("0731", "xhigh"), ("v41", "xhigh"), ("0731", "")]
)
def test_an_effort_of_another_encoding_is_refused(encoding: EncodingName, effort: str) -> None:
    with pytest.raises(ValueError, match=f"unknown reasoning_effort '{effort}'; in the encoding {encoding} it may be"):
        encode_messages([ASK], "chat", reasoning_effort=effort, encoding=encoding)


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown encoding 'v5'; it may be preview, 0731, v41"):
        find_encoding("v5")


def test_efforts_are_all_that_differs_between_preview_and_0731() -> None:
    messages = [{**RULES, "tools": [TOOL]}, ASK, {**ANSWER, "tool_calls": [tool_call("f", {})]}, ASK, RULES, ASK]
    for mode in ("chat", "thinking"):
        assert encode_messages(messages, mode, encoding="0731") == encode_messages(messages, mode)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([RULES, ASK], f"{SYSTEM}s{USER}q{ASSISTANT}</think>"),
        ([RULES, RULES, ASK], f"{SYSTEM}s{SYSTEM}s{USER}q{ASSISTANT}</think>"),
        ([ASK, RULES], f"{USER}q{SYSTEM}s{ASSISTANT}</think>"),
        ([ASK, ANSWER], f"{USER}q{ASSISTANT}</think>a{EOS}"),
        ([ASK, ANSWER, ANSWER], f"{USER}q{ASSISTANT}</think>a{EOS}{ASSISTANT}</think>a{EOS}"),
        ([ASK, {"role": "latest_reminder", "content": "l"}], f"{USER}q<｜latest_reminder｜>l{ASSISTANT}</think>"),
        (
            [ASK, {**ANSWER, "tool_calls": [tool_call("f", {"k": 1}), tool_call("g", {})]}],
            f"{USER}q{ASSISTANT}</think>a\n\n<｜DSML｜ calls>\n"
            '<｜DSML｜ invoke name="f">\n<｜DSML｜ parameter name="k" string="false">1</｜DSML｜ parameter>\n'
            '</｜DSML｜ invoke>\n<｜DSML｜ invoke name="g">\n\n</｜DSML｜ invoke>\n</｜DSML｜ calls>' + EOS,
        ),
        (
            [ASK, ANSWER, {**RULES, "tools": [TOOL]}, ASK],
            f"{USER}q{ASSISTANT}</think>a{EOS}{SYSTEM}s\n\n### Updated Tool Schemas\n\n"
            '{"name": "sum", "description": "", "parameters": {"type": "object"}}' + f"{USER}q{ASSISTANT}</think>",
        ),
    ],
)
def test_v41_marks_system_turns_and_responses(messages: list[dict[str, Any]], text: str) -> None:
    assert encode_messages(messages, encoding="v41") == BOS + text


def test_v41_explains_its_own_tags() -> None:
    text = encode_messages([{**RULES, "tools": [TOOL]}, ASK], "thinking", encoding="v41")
    for tag in ("calls", "invoke", "parameter"):
        assert f"<｜DSML｜ {tag}" in text
        assert f"</｜DSML｜ {tag}>" in text
    assert "tool_calls" not in text
    assert '{"name": "sum", "description": "", "parameters": {"type": "object"}}' in text
    extra = {"function": {**TOOL["function"], "strict": True}}
    deferred = {"function": {**TOOL["function"], "name": "later", "defer_loading": True}}
    assert encode_messages([{**RULES, "tools": [extra, deferred]}, ASK], "thinking", encoding="v41") == text


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"role": "developer", "content": "d"}, r"messages\[0\] \(developer\) has a role that the encoding v41 lacks"),
        ({**ASK, "task": "title"}, r"messages\[0\] \(user\) has a task, which the encoding v41 lacks"),
    ],
)
def test_what_v41_is_not_known_to_have_is_refused(message: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        encode_messages([message], encoding="v41")


@pytest.mark.parametrize("encoding", ["0731", "v41"])
def test_what_an_encoding_writes_it_reads_back(encoding: EncodingName) -> None:
    generator = random.Random(7)
    for _ in range(100):
        answer = made_answer(generator)
        prompt = encode_messages([ASK], "thinking", encoding=encoding)
        whole = encode_messages([ASK, answer], "thinking", encoding=encoding)
        assert whole.startswith(prompt)
        assert parse_message(whole.removeprefix(prompt), "thinking", encoding) == answer
    calls = encode_messages([ASK, {**answer, "tool_calls": [tool_call("f", {})]}], encoding=encoding)
    completion = calls.removeprefix(encode_messages([ASK], encoding=encoding))
    with pytest.raises(ValueError, match="the answer holds ｜DSML｜"):
        parse_message(completion, "chat", "v41" if encoding == "0731" else "preview")
