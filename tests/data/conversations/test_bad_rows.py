"""Rows of every bad kind are each refused with one short line that says what is wrong."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seektune.data.conversations.teaching import Teaching
from seektune.data.datasets.chat import ChatTexts
from seektune.data.datasets.preference import PreferenceTexts
from seektune.data.datasets.prompt_completion import PromptCompletionTexts
from seektune.data.datasets.row_texts import RowTexts, texts_of
from seektune.data.datasets.text import DocumentTexts
from seektune.data.sources.row import BadRow, SourceRow

from .rows import WEATHER, answer, call, user

CHAT = ChatTexts(Teaching("preview"))
WRITERS: dict[str, RowTexts] = {
    "chat": CHAT,
    "prompt_completion": PromptCompletionTexts(),
    "text": DocumentTexts(),
    "preference": PreferenceTexts(Teaching("preview")),
}
MEGABYTE = "x" * 10**6
DEEP: dict[str, Any] = {}
for _ in range(5000):
    DEEP = {"a": DEEP}
CALL = answer(None, None, call("weather", "{}", "a"))


def result(call_id: str | None = "a") -> dict[str, Any]:
    return {"role": "tool", "content": "sun", "tool_call_id": call_id}


def row(*messages: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


def reason(values: dict[str, Any], writer: RowTexts = CHAT) -> str:
    found = texts_of(writer, SourceRow(values, "rows.jsonl line 7", 0))
    assert isinstance(found, BadRow), [text.text for text in found]
    assert found.place == "rows.jsonl line 7"
    assert "\n" not in found.reason
    assert len(found.reason) < 400
    return found.reason


BAD_CONVERSATIONS = {
    "empty": ({}, "the row is empty"),
    "null": ({"messages": None}, "the row is empty: it has no column that is not null"),
    "no messages": (row(), "messages is empty"),
    "blank text": ({"messages": ""}, "messages is empty"),
    "other columns": ({"question": "a", "answer": "b"}, "columns answer, question, and a conversation needs messages"),
    "text": ({"text": "a"}, "data.kind text reads such rows"),
    "pair": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "data.kind preference reads such rows"),
    "messages as text": ({"messages": "hello"}, "messages is text that is not a JSON list"),
    "messages as object": ({"messages": {"role": "user"}}, "messages must be a list"),
    "a message as text": (row("hi"), r"messages\[0\] must be an object with role and content, not 'hi'"),
    "no role": (row({"content": "a"}, answer("b")), r"messages\[0\] has no role"),
    "wrong role": (row({"role": "bot", "content": "a"}, answer("b")), r"messages\[0\] has the unknown role 'bot'"),
    "role that is no text": (row({"role": [1], "content": "a"}, answer("b")), r"messages\[0\] has the unknown role \[1\]"),  # noqa: E501
    "wrong speaker": ({"conversations": [{"from": "narrator", "value": "a"}]}, "has from 'narrator'; it may be system"),
    "no content": (row({"role": "user"}, answer("b")), r"messages\[0\] \(user\) has no content"),
    "content of a number": (row(user(5), answer("b")), r"messages\[0\] \(user\) has content 5"),
    "an image": (
        row({"role": "user", "content": [{"type": "image_url"}]}, answer("b")),
        "a part of content .*, which is no text",
    ),
    "no response": (row(user("a")), "no message has the role assistant"),
    "empty response": (row(user("a"), answer("")), r"messages\[1\] \(assistant\) is empty"),
    "null response": (row(user("a"), answer(None)), r"messages\[1\] \(assistant\) is empty"),
    "response first": (row(answer("b")), r"messages\[0\] \(assistant\) is the first message"),
    "response after system": (
        row({"role": "system", "content": "s"}, answer("b")),
        r"messages\[1\] \(assistant\) is the first message",
    ),
    "two responses": (row(user("a"), answer("b"), answer("c")), r"messages\[2\] \(assistant\) follows the role assistant"),  # noqa: E501
    "nothing taught": (row(user("a"), {**answer("b"), "train": False}), "no response is taught"),
    "a question taught": (row({**user("a"), "train": True}, answer("b")), "only messages of the assistant can be taught"),  # noqa: E501
    "train of a number": (row(user("a"), {**answer("b"), "train": 1}), "has train 1; it must be true or false"),
    "half a weight": (row(user("a"), {**answer("b"), "weight": 0.5}), "has weight 0.5; it may be 0"),
    "weight of a list": (row(user("a"), {**answer("b"), "weight": [1]}), r"has weight \[1\]; it may be 0"),
    "call without result": (row(user("a"), CALL, user("b"), answer("c")), r"messages\[1\] .* not every call has a result"),  # noqa: E501
    "one result of two": (
        row(user("a"), answer(None, None, call("f", {}, "a"), call("g", {}, "b")), result(), answer("c")),
        "calls f, and not every call has a result",
    ),
    "result without call": (row(user("a"), result(), answer("b")), r"messages\[1\] \(tool\) is a result, and no call"),
    "result twice": (row(user("a"), CALL, result(), result(), answer("b")), r"messages\[3\] \(tool\) is a result, and no"),  # noqa: E501
    "result of another call": (row(user("a"), CALL, result("z"), answer("b")), "tool_call_id 'z', which no waiting call"),  # noqa: E501
    "call without name": (row(user("a"), answer(None, None, {"function": {}})), r"tool_calls\[0\] .* function with a name"),  # noqa: E501
    "calls as text": (row(user("a"), {**answer(None), "tool_calls": "f()"}), "has tool_calls 'f\\(\\)', which must be a list"),  # noqa: E501
    "arguments no JSON": (row(user("a"), answer(None, None, call("f", "{x}"))), "calls f with arguments that are not JSON"),  # noqa: E501
    "arguments a list": (row(user("a"), answer(None, None, call("f", [1]))), "which must be a JSON object"),
    "call no JSON": ({"conversations": [{"from": "function_call", "value": "f("}]}, "has a call that is not JSON"),
    "tools as text": (row(user("a"), answer("b"), tools="weather"), "tools is text that is not a JSON list"),
    "tools as object": (row(user("a"), answer("b"), tools=WEATHER), "tools must be a list"),
    "a tool as text": (row(user("a"), answer("b"), tools=["weather"]), r"tools\[0\] 'weather' must have a function"),
    "a tool without name": (row(user("a"), answer("b"), tools=[{"function": {}}]), r"tools\[0\] .* must have a func"),
    "NaN": (row(user("a"), answer(None, None, call("f", {"x": float("nan")}))), "which JSON cannot hold"),
    "spelled user": (row(user("a<｜User｜>"), answer("b")), r"messages\[0\] \(user\) spells the control token <｜User｜>"),  # noqa: E501
    "spelled EOS": (
        row(user("a"), answer("b<｜end▁of▁sentence｜>")),
        r"messages\[1\] \(assistant\) spells the control token <｜end▁of▁sentence｜>",
    ),
    "spelled reasoning": (row(user("a"), answer("b </think> c")), "spells the control token </think>"),
    "spelled in tools": (
        row(user("a"), answer("b"), tools=[{"function": {"name": "<think>"}}]),
        "the row spells the control token <think>",
    ),
    "surrogate": (row(user("\ud800"), answer("b")), "half of a surrogate pair"),
    "surrogate response": (row(user("a"), answer("b\udfff")), "half of a surrogate pair"),
    "open reasoning": (row(user("a"), answer("<think>b")), "begins with <think>, which never ends"),
    "two reasonings": (
        row(user("a"), {**answer("b", "r"), "reasoning": "s"}),
        r"messages\[1\] \(assistant\) has reasoning in reasoning_content and in reasoning",
    ),
    "reasoning of a number": (row(user("a"), {**answer("b"), "reasoning": 5}), "has reasoning_content 5, which must be text"),  # noqa: E501
    "mode": (row(user("a"), answer("b"), thinking="deep"), "thinking must be auto, chat or thinking, not 'deep'"),
    "mode of a list": (row(user("a"), answer("b"), thinking=[]), r"thinking must be auto, chat or thinking, not \[\]"),
    "effort": (row(user("a"), answer("b", "r"), reasoning_effort="huge"), "unknown reasoning_effort 'huge'"),
    "empty instruction": ({"instruction": "", "output": "b"}, "instruction is empty"),
    "empty output": ({"instruction": "a", "output": ""}, "output is empty"),
    "number as output": ({"instruction": "a", "output": 5}, "output must be text, not 5"),
    "history": ({"instruction": "a", "output": "b", "history": ["x"]}, r"history\[0\] must be two texts"),
    "deep": (row(user("a"), answer(None, None, call("f", DEEP))), "nested too deeply|cannot hold"),
    "a megabyte of role": (row({"role": MEGABYTE}), r"unknown role 'x+\.\.\."),
    "a megabyte of arguments": (row(user("a"), answer(None, None, call("f", MEGABYTE))), "arguments that are not JSON"),
    "a megabyte of a column": ({MEGABYTE: 1}, r"columns x+\.\.\.,"),
    "a megabyte of effort": (row(user("a"), answer("b", "r"), reasoning_effort=MEGABYTE), "unknown reasoning_effort"),
    "a megabyte of a tool's name": (
        row(user("a"), answer(None, None, call(MEGABYTE, "{}")), user("b"), answer("c")),
        r"calls x+\.\.\.",
    ),
}  # fmt: skip
BAD_OTHERS = {
    "text null": ("text", {"text": None}, "no text; the row has the columns none"),
    "text empty": ("text", {"text": ""}, "text is empty"),
    "text number": ("text", {"text": 5}, "text must be text, not 5"),
    "text elsewhere": ("text", {"body": "a"}, r"columns body; name yours in data.columns, such as \{text: NAME\}"),
    "text of chat": ("text", row(user("a")), "no text; .* data.kind chat reads such rows"),
    "text spelled": ("text", {"text": "a<｜User｜>"}, "the text spells the control token <｜User｜>"),
    "text surrogate": ("text", {"text": "\ud800"}, "half of a surrogate pair"),
    "completion missing": ("prompt_completion", {"prompt": "a"}, "no completion; the row has the columns prompt"),
    "completion empty": ("prompt_completion", {"prompt": "a", "completion": ""}, "completion is empty"),
    "prompt of messages": (
        "prompt_completion",
        {"prompt": [user("a")], "completion": "b"},
        "prompt is a list of messages; data.kind chat reads such rows",
    ),
    "prompt of chat": ("prompt_completion", row(user("a")), "data.kind chat reads such rows"),
    "no rejected": ("preference", {"prompt": "a", "chosen": "b"}, "no rejected"),
    "no prompt": ("preference", {"chosen": "b", "rejected": "c"}, "need a prompt or messages beside them"),
    "equal": ("preference", {"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected do not differ"),
    "chosen number": ("preference", {"prompt": "a", "chosen": 5, "rejected": "b"}, "chosen must be a list, not 5"),
    "empty chosen": ("preference", {"prompt": "a", "chosen": [], "rejected": [answer("b")]}, "chosen is empty"),
}


@pytest.mark.parametrize("name", BAD_CONVERSATIONS)
def test_a_bad_conversation_has_a_reason(name: str) -> None:
    values, expected = BAD_CONVERSATIONS[name]
    assert re.search(expected, reason(values)), reason(values)


@pytest.mark.parametrize("name", BAD_OTHERS)
def test_a_bad_row_of_another_kind_has_a_reason(name: str) -> None:
    kind, values, expected = BAD_OTHERS[name]
    assert re.search(expected, reason(values, WRITERS[kind])), reason(values, WRITERS[kind])


def test_an_error_counts_messages_as_the_row_does() -> None:
    """System and tools beside the messages do not move the place."""
    bad = row(user("a"), {"role": "assistant", "content": 5}, tools=[WEATHER], system="s")
    assert reason(bad).startswith("messages[1] (assistant) has content 5")


def test_a_long_good_row_is_encoded() -> None:
    for kind, values in {"chat": row(user(MEGABYTE), answer("b")), "text": {"text": MEGABYTE}}.items():
        (text,) = WRITERS[kind].texts(values)
        assert len(text.text) > 10**6


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "instruction", "output", "history",
         "text", "system", "tools", "thinking", "reasoning_effort", "reasoning")  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "tool", "system", "developer", "function"]) | JSON,
        "from": st.sampled_from(["human", "gpt", "function_call", "observation"]) | JSON,
        **dict.fromkeys(("content", "value", "tool_calls", "function_call", "train", "weight", "reasoning"), JSON),
        **dict.fromkeys(("tool_call_id", "tools", "task", "wo_eos", "response_format"), JSON),
    },
)
ROW = st.dictionaries(st.sampled_from(NAMES), JSON | st.lists(MESSAGE | JSON, max_size=4), max_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(values=ROW)
def test_any_row_is_read_or_has_a_reason(kind: str, values: dict[str, Any]) -> None:
    found = texts_of(WRITERS[kind], SourceRow(values, "x", 0))
    assert isinstance(found, BadRow) or found
