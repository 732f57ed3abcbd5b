"""Rows in the forms that people have become the same conversation."""

import json
from typing import Any

import pytest

from seektune.data.conversations.forms import read_conversation
from seektune.data.conversations.pairs import read_pair

from .rows import WEATHER, answer, call, user

TOOL_CALL = call("weather", {"city": "Bern"})


def messages(row: dict[str, Any], **columns: str | None) -> list[dict[str, Any]]:
    return [dict(message) for message in read_conversation(row, columns).messages]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [user("a"), answer("b")]}, [user("a"), answer("b")]),
        ({"messages": json.dumps([user("a"), answer("b")])}, [user("a"), answer("b")]),
        ({"messages": [{**user("a"), "tool_calls": None}, answer("b", None)]}, [user("a"), answer("b")]),
        ({"conversations": [user("a"), answer("b")]}, [user("a"), answer("b")]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                ]
            },
            [{"role": "system", "content": "s"}, user("a"), answer("b")],
        ),
        ({"instruction": "a", "output": "b"}, [user("a"), answer("b")]),
        ({"instruction": "a", "input": "", "output": "b"}, [user("a"), answer("b")]),
        ({"instruction": "a", "input": "x", "output": "b"}, [user("a\n\nx"), answer("b")]),
        (
            {"instruction": "c", "output": "d", "history": [["a", "b"]]},
            [user("a"), answer("b"), user("c"), answer("d")],
        ),
        ({"prompt": "a", "completion": "b"}, [user("a"), answer("b")]),
        (
            {"prompt": [user("a"), answer("b"), user("c")], "completion": [answer("d")]},
            [
                {**user("a"), "train": False},
                {**answer("b"), "train": False},
                {**user("c"), "train": False},
                answer("d"),
            ],
        ),
        ({"prompt": "a", "messages": [user("x"), answer("y")]}, [user("x"), answer("y")]),
    ],
)
def test_forms_are_recognized_by_their_columns(row: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    found = messages(row)
    assert [{key: value for key, value in message.items() if value is not None} for message in found] == expected


def test_columns_are_mapped_by_the_recipe() -> None:
    row = {"question": "a", "answer": "b", "messages": "not read", "thought": "r", "extra": [1]}
    found = messages(row, prompt="question", completion="answer", reasoning="thought", messages=None)
    assert found == [user("a"), answer("b", "r")]


def test_a_mapped_column_is_not_read_under_its_own_name() -> None:
    row = {"instruction": "a", "output": "b", "input": "the answer"}
    assert messages(row, completion="input", prompt="instruction", output=None) == [user("a"), answer("the answer")]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_found_under_each_key(key: str) -> None:
    found = messages({"messages": [user("a"), {"role": "assistant", "content": "b", key: "r"}]})
    assert found[1] == answer("b", "r")


@pytest.mark.parametrize(
    ("content", "reasoning", "rest"),
    [
        ("<think>r</think>b", "r", "b"),
        ("<think>\nr\n\ns\n</think>\n\nb\n", "r\n\ns", "b\n"),
        ("\n<think> r </think> b", " r ", " b"),
        ("<think></think>b", "", "b"),
        ("b </think> c", None, "b </think> c"),
        ("b <think>r</think>", None, "b <think>r</think>"),
    ],
)
def test_reasoning_is_taken_out_of_the_beginning_of_content(content: str, reasoning: str | None, rest: str) -> None:
    found = messages({"messages": [user("a"), answer(content)]})
    assert found[1] == answer(rest, reasoning)


def test_the_same_reasoning_twice_is_one() -> None:
    message = {"role": "assistant", "content": "<think>r</think>b", "reasoning": "r", "reasoning_content": "r"}
    assert messages({"messages": [user("a"), message]})[1] == answer("b", "r")


@pytest.mark.parametrize("arguments", ['{"city": "Bern"}', {"city": "Bern"}])
def test_calls_of_other_tools_become_tool_calls(arguments: Any) -> None:
    expected = [user("a"), answer(None, None, call("weather", arguments)), {"role": "tool", "content": "sun"}]
    expected[1].pop("content")
    written = {"name": "weather", "arguments": arguments}
    sharegpt = [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": json.dumps(written)},
        {"from": "observation", "value": "sun"},
    ]
    assert messages({"conversations": sharegpt}) == expected
    assert (
        messages({"conversations": [sharegpt[0], {"from": "tool_call", "value": [written]}, sharegpt[2]]}) == expected
    )
    legacy = [user("a"), {"role": "assistant", "content": None, "function_call": written}]
    legacy.append({"role": "function", "name": "weather", "content": "sun"})
    expected[2] = {"role": "tool", "name": "weather", "content": "sun"}
    assert messages({"messages": legacy}) == expected


@pytest.mark.parametrize("tools", [[WEATHER], json.dumps([WEATHER]), (WEATHER,)])
def test_tools_and_system_stand_beside_the_messages(tools: Any) -> None:
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}
    found = read_conversation({**row, "tools": tools}, {})
    first, *rest = found.all_messages()
    assert (first["role"], first["content"], list(first["tools"])) == ("system", "s", [WEATHER])
    assert rest == list(found.messages)


@pytest.mark.parametrize(
    ("value", "mode"), [(True, "thinking"), (False, "chat"), ("auto", "auto"), ("thinking", "thinking"), (None, None)]
)
def test_a_row_chooses_mode_and_effort(value: Any, mode: str | None) -> None:
    row = {"messages": [user("a"), answer("b")], "thinking": value, "reasoning_effort": "max"}
    found = read_conversation(row, {})
    assert (found.thinking, found.reasoning_effort) == (mode, "max")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [user("a")], "chosen": [answer("b")], "rejected": [answer("c")]},
        {"chosen": [user("a"), answer("b")], "rejected": [user("a"), answer("c")]},
        {"prompt": "a", "chosen": [user("a"), answer("b")], "rejected": [user("a"), answer("c")]},
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
    ],
)
def test_pairs_have_one_prompt_and_two_responses(row: dict[str, Any]) -> None:
    for conversation, text in zip(read_pair(row, {}), "bc", strict=True):
        prompt, response = conversation.messages
        assert (prompt["content"], prompt["role"]) == ("a", "user")
        assert dict(response) == answer(text)
