"""Bytes and taught spans of training texts in three encodings, against texts written by hand and a second writer."""

from typing import Any

import pytest

from seektune.data.chat_format.pieces import ChatText, encode_texts
from seektune.data.conversations.forms import read_conversation
from seektune.data.conversations.teaching import Teaching
from seektune.data.tokenizer import RENAMED, SYSTEM, Tokenizer
from tests.data.chat_format.recipe import our_messages, recipe_cases
from tests.places import CHAT_ENCODING

from .rows import CALLS, PLAIN, REASONED, ROWS
from .second_writer import EFFORT_TEXT, taught_spans, write_all

B, E, U, A, S = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜System｜>"
N75 = "Reasoning Effort: 75 (range 1-100, the higher the value, the more thorough the reasoning)\n\n"
DSML = "｜DSML｜"

BY_HAND: list[tuple[dict[str, Any], str, str, list[str]]] = [
    (PLAIN, "chat", "preview", [f"{B}{U}2+2?{A}</think>⟦4{E}⟧"]),
    (PLAIN, "chat", "0731", [f"{B}{U}2+2?{A}</think>⟦4{E}⟧"]),
    (PLAIN, "chat", "v41", [f"{B}{U}2+2?{A}</think>⟦4{E}⟧"]),
    (PLAIN, "thinking", "preview", [f"{B}{U}2+2?{A}<think>⟦</think>4{E}⟧"]),
    (PLAIN, "thinking", "v41", [f"{B}{S}{N75}{U}2+2?{A}<think>⟦</think>4{E}⟧"]),
    (REASONED, "chat", "0731", [f"{B}Be brief.{U}2+2?{A}</think>⟦4{E}⟧{U}3+3?{A}</think>⟦6{E}⟧"]),
    (
        REASONED,
        "thinking",
        "0731",
        [
            f"{B}Be brief.{U}2+2?{A}<think>⟦easy</think>4{E}⟧",
            f"{B}Be brief.{U}2+2?{A}</think>4{E}{U}3+3?{A}<think>⟦easier\n\nstill</think>6{E}⟧",
        ],
    ),
    (
        REASONED,
        "auto",
        "v41",
        [
            f"{B}{S}{N75}Be brief.{U}2+2?{A}<think>⟦easy</think>4{E}⟧",
            f"{B}{S}{N75}Be brief.{U}2+2?{A}</think>4{E}{U}3+3?{A}<think>⟦easier\n\nstill</think>6{E}⟧",
        ],
    ),
]
CALLS_TAIL = {
    "preview": (
        f"{U}And now?{A}<think>⟦again</think>\n\n<{DSML}tool_calls>\n"
        f'<{DSML}invoke name="weather">\n\n</{DSML}invoke>\n</{DSML}tool_calls>{E}⟧'
    ),
    "v41": (
        f"{U}And now?{A}<think>⟦again</think>\n\n<{DSML} calls>\n"
        f'<{DSML} invoke name="weather">\n\n</{DSML} invoke>\n</{DSML} calls>{E}⟧'
    ),
}


def marked(text: ChatText) -> str:
    """The text with ⟦ and ⟧ around what is taught."""
    made = ""
    inside = False
    for piece in text.pieces:
        if piece.taught != inside:
            made += "⟦" if piece.taught else "⟧"
            inside = piece.taught
        made += piece.text
    return made + ("⟧" if inside else "")


def texts(row: dict[str, Any], mode: Any, encoding: Any, effort: str | None = None) -> list[ChatText]:
    return Teaching(encoding, thinking=mode, reasoning_effort=effort).texts(read_conversation(row, {}))


@pytest.mark.parametrize(("row", "mode", "encoding", "expected"), BY_HAND)
def test_bytes_and_taught_spans_are_those_written_by_hand(
    row: dict[str, Any], mode: str, encoding: str, expected: list[str]
) -> None:
    assert [marked(text) for text in texts(row, mode, encoding)] == expected


@pytest.mark.parametrize("encoding", CALLS_TAIL)
def test_reasoning_content_calls_and_eos_are_taught(encoding: str) -> None:
    (text,) = texts(CALLS, "thinking", encoding)
    assert marked(text).endswith(CALLS_TAIL[encoding])
    before, _, result = marked(text).partition("<tool_result>")
    assert before.endswith(f"{E}⟧{U}")
    assert result.startswith(
        f"sun</tool_result>\n\n<tool_result>snow</tool_result>{A}<think>⟦done</think>Sun, then snow."
    )


@pytest.mark.parametrize("encoding", ["preview", "0731", "v41"])
@pytest.mark.parametrize("mode", ["chat", "thinking"])
@pytest.mark.parametrize("name", ROWS)
def test_a_second_writer_gives_the_same_bytes_and_spans(
    name: str, mode: str, encoding: str, tokenizer_v41: Tokenizer
) -> None:
    for effort in EFFORT_TEXT[encoding]:
        found = texts(ROWS[name], mode, encoding, effort)
        assert [text.text for text in found] == write_all(ROWS[name], mode == "thinking", effort, encoding)
        for text, (ids, taught) in zip(found, encode_texts(found, tokenizer_v41), strict=True):
            written = text.text.replace(SYSTEM, RENAMED[SYSTEM])
            encoded = tokenizer_v41._whole.encode(written, add_special_tokens=False)
            spans = taught_spans(written)
            assert spans
            inside = [any(start <= at < end for start, end in spans) for at, _ in encoded.offsets]
            assert (ids, taught) == (encoded.ids, inside)


@pytest.mark.skipif(not CHAT_ENCODING.is_dir(), reason="the official cases are not here")
@pytest.mark.parametrize("encoding", ["0731", "v41"])
def test_examples_of_the_library_are_prefixes_of_ours(encoding: Any) -> None:
    """What is taught of each is its completion, but for two cases whose tools the library describes otherwise."""
    different = set()
    for case in recipe_cases("training", encoding):
        options = case["options"]
        teaching = Teaching(
            encoding, thinking=options["thinking_mode"], reasoning_effort=options.get("reasoning_effort")
        )
        row = {"messages": our_messages({**case, "options": {}}), "tools": options.get("tools")}
        found = [marked(text) for text in teaching.texts(read_conversation(row, {}))]
        for example in case["examples"]:
            taught = f"⟦{example['completion']}⟧"
            expected = example["prompt"]
            if not any(
                text.replace("⟦", "").replace("⟧", "").startswith(expected + example["completion"]) and taught in text
                for text in found
            ):
                different.add(case["name"])
    assert different == ({"two calls, answer, new question", "calls, chat"} if encoding == "0731" else set())
