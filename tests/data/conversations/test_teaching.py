"""Which responses are taught, in which mode, and in how many texts."""

from typing import Any

import pytest

from seektune.data.chat_format.pieces import ChatText
from seektune.data.conversations.forms import read_conversation
from seektune.data.conversations.teaching import Teaching

from .rows import CALLS, REASONED, answer, user
from .second_writer import END

MIXED = [user("a"), answer("1", "r1"), user("b"), answer("2"), user("c"), answer("3", "r3"), user("d"), answer("4")]


def taught(row: dict[str, Any], **settings: Any) -> list[str]:
    """What each text teaches, parts separated by |."""
    found = Teaching("preview", **settings).texts(read_conversation(row, {}))
    return ["|".join(part.removesuffix(END) for part in _parts(text)) for text in found]


def _parts(text: ChatText) -> list[str]:
    parts = [""]
    for piece in text.pieces:
        if piece.taught:
            parts[-1] += piece.text
        elif parts[-1]:
            parts.append("")
    return [part for part in parts if part]


def row_of(*messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


def test_all_or_the_last_response_is_taught() -> None:
    row = row_of(user("a"), answer("1"), user("b"), answer("2"))
    assert taught(row) == ["1|2"]
    assert taught(row, teach="last") == ["2"]
    assert taught(CALLS, teach="last", thinking="thinking")[0].startswith("again</think>")


@pytest.mark.parametrize(
    ("key", "off", "on"), [("train", False, True), ("weight", 0, 1), ("weight", 0.0, 1.0)], ids=str
)
def test_a_message_decides_before_the_dataset(key: str, off: Any, on: Any) -> None:
    first, second = answer("1"), answer("2")
    assert taught(row_of(user("a"), {**first, key: off}, user("b"), second)) == ["2"]
    assert taught(row_of(user("a"), {**first, key: on}, user("b"), second), teach="last") == ["1|2"]
    assert taught(row_of(user("a"), {**first, key: None}, user("b"), {**second, key: off})) == ["1"]


def test_speakers_of_sharegpt_have_weights_as_well() -> None:
    turns = [("human", "a", None), ("gpt", "1", 0), ("human", "b", None), ("gpt", "2", 1)]
    row = {"conversations": [{"from": who, "value": text, "weight": weight} for who, text, weight in turns]}
    assert taught(row) == ["2"]


def test_each_question_whose_reasoning_a_server_drops_is_a_text_of_its_own() -> None:
    assert taught(REASONED, thinking="thinking") == ["easy</think>4", "easier\n\nstill</think>6"]
    assert taught(REASONED, thinking="thinking", teach="last") == ["easier\n\nstill</think>6"]
    assert taught(REASONED, thinking="chat") == ["4|6"]
    assert len(taught({**REASONED, "tools": CALLS["tools"]}, thinking="thinking")) == 1


def test_auto_teaches_responses_with_reasoning_in_thinking_mode_and_others_in_chat_mode() -> None:
    found = Teaching("0731", reasoning_effort="max").texts(read_conversation(row_of(*MIXED), {}))
    assert taught(row_of(*MIXED)) == ["2|4", "r1</think>1", "r3</think>3"]
    assert ["Beyond maximum" in text.text for text in found] == [False, True, True]
    assert "<think>" not in found[0].text
    assert taught(row_of(user("a"), answer("1"))) == ["1"]


def test_auto_is_thinking_for_all_where_tools_keep_the_reasoning() -> None:
    (found,) = taught(row_of(*MIXED, tools=CALLS["tools"]))
    assert found == "r1</think>1|</think>2|r3</think>3|</think>4"


def test_auto_texts_are_cut_behind_the_last_response_in_chat_mode() -> None:
    found = Teaching("preview").texts(read_conversation(row_of(*MIXED[:6]), {}))
    assert [text.text.endswith(END) for text in found] == [True, True, True]
    assert found[0].text.endswith(f"2{END}")


def test_a_row_chooses_mode_and_effort_before_the_dataset() -> None:
    row = row_of(user("a"), answer("1", "r"), thinking="chat")
    assert taught(row, thinking="thinking") == ["1"]
    row = row_of(user("a"), answer("1", "r"), reasoning_effort="max")
    (text,) = Teaching("preview", reasoning_effort="high").texts(read_conversation(row, {}))
    assert "Absolute maximum" in text.text


def test_messages_after_the_last_response_are_not_read() -> None:
    row = row_of(user("a"), answer("1"), user("thanks"))
    (text,) = Teaching("preview").texts(read_conversation(row, {}))
    assert text.text.endswith(f"1{END}")


def test_roles_of_the_format_keep_their_places() -> None:
    row = row_of(
        {"role": "developer", "content": "dev"},
        {"role": "latest_reminder", "content": "2026"},
        user("a"),
        answer("1"),
    )
    (text,) = Teaching("preview").texts(read_conversation(row, {}))
    assert "<｜User｜>dev" in text.text
    assert "<｜latest_reminder｜>2026<｜User｜>a" in text.text


def test_control_tokens_are_plain_characters_only_where_that_is_asked_for(tokenizer: Any) -> None:
    row = row_of(user(f"x{END}y"), answer("1"))
    with pytest.raises(ValueError, match=r"messages\[0\] \(user\) spells the control token"):
        Teaching("preview").texts(read_conversation(row, {}))
    (text,) = Teaching("preview", control_tokens="plain").texts(read_conversation(row, {}))
    assert text.ids(tokenizer).count(tokenizer.eos_id) == 1
