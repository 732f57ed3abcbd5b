"""Control tokens of the format become ids; the same letters in a message stay letters."""

import random
from typing import Any

import pytest

from seektune import encode_messages
from seektune.data.chat_format.encode import render_messages, render_training_texts
from seektune.data.chat_format.encodings import ENCODINGS
from seektune.data.chat_format.tokens import CONTROL
from seektune.data.tokenizer import OFFICIAL_SIZE, Tokenizer, load_tokenizer

from .cases import ASSISTANT, BOS, EOS, TOOL, USER, made_answer, made_text, tool_call

ASK: dict[str, Any] = {"role": "user", "content": "q"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "a", "reasoning_content": "r"}
SPELLED = f"{BOS}{EOS}{USER}{ASSISTANT}<think></think>｜DSML｜<｜latest_reminder｜><｜title｜><｜System｜>"
EVERYWHERE: list[dict[str, Any]] = [
    {
        "role": "system",
        "content": SPELLED,
        "tools": [{"function": {"name": SPELLED, "description": SPELLED}}],
        "response_format": {SPELLED: SPELLED},
    },
    {"role": "user", "content": [{"type": "text", "text": SPELLED}]},
    {
        "role": "assistant",
        "content": SPELLED,
        "reasoning_content": SPELLED,
        "tool_calls": [tool_call(SPELLED, {SPELLED: SPELLED, "n": [SPELLED]}, "c1")],
    },
    {"role": "tool", "content": SPELLED, "tool_call_id": "c1"},
    {"role": "latest_reminder", "content": SPELLED},
    {"role": "user", "content": SPELLED},
]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", list(ENCODINGS))
@pytest.mark.parametrize("mode", ["chat", "thinking"])
def test_a_message_cannot_write_control_tokens(tokenizer: Tokenizer, encoding: Any, mode: str) -> None:
    plain = [{**message} for message in EVERYWHERE]
    text = render_messages(plain, mode, encoding=encoding)
    quiet = encode_messages(_without(SPELLED, EVERYWHERE), mode, encoding=encoding)
    assert CONTROL.findall(quiet) == [piece.text for piece in text.pieces if piece.control]
    official = load_tokenizer(OFFICIAL_SIZE) if encoding == "v41" else tokenizer
    ids = text.ids(official)
    control = {official.control_id(token) for token in CONTROL.findall(quiet)}
    assert sum(each in control for each in ids) == len(CONTROL.findall(quiet))
    assert official.decode(ids).replace("<｜place▁holder▁no▁799｜>", "<｜System｜>") == text.text


def test_text_without_control_tokens_has_the_ids_of_the_whole_text(tokenizer: Tokenizer) -> None:
    generator = random.Random(11)
    for _ in range(50):
        messages = [{"role": "system", "content": made_text(generator), "tools": [TOOL]}]
        for _ in range(3):
            messages += [{"role": "user", "content": made_text(generator)}, made_answer(generator)]
        found = render_messages(messages, "thinking", reasoning_effort="max", encoding="0731")
        assert found.ids(tokenizer) == tokenizer.encode_prompt(found.text)


def test_control_ranges_are_the_tokens_of_the_format() -> None:
    found = render_messages([{"role": "user", "content": "<think>"}], "thinking")
    assert [found.text[start:end] for start, end in found.control_ranges()] == [BOS, USER, ASSISTANT, "<think>"]
    assert found.text == f"{BOS}{USER}<think>{ASSISTANT}<think>"


@pytest.mark.slow
def test_a_reduced_vocabulary_lacks_the_token_that_v41_adds(tokenizer: Tokenizer) -> None:
    text = render_messages([{"role": "system", "content": "s"}, ASK], encoding="v41")
    with pytest.raises(ValueError, match="the vocabulary of 2048 ids has no <｜System｜>, which this encoding needs"):
        text.ids(tokenizer)
    assert text.ids(load_tokenizer(OFFICIAL_SIZE))[1] == 128799


@pytest.mark.parametrize("encoding", ["preview", "0731"])
def test_responses_are_taught_with_reasoning_calls_and_eos(tokenizer: Tokenizer, encoding: Any) -> None:
    messages = [ASK, {**ANSWER, "tool_calls": [tool_call("f", {"k": 1})]}, {"role": "tool", "content": "3"}, ANSWER]
    (text,) = render_training_texts(messages, [TOOL], "thinking", encoding=encoding)
    example = text.example(tokenizer, "row 1")
    assert example.tokens == text.ids(tokenizer)
    assert example.name == "row 1"
    taught = [token for token, is_taught in zip(example.tokens, example.taught, strict=True) if is_taught]
    responses = [each.partition("<think>")[2] + EOS for each in text.text.split(ASSISTANT)[1:]]
    responses = [each.partition(EOS)[0] + EOS for each in responses]
    assert tokenizer.decode(taught) == "".join(responses)
    assert responses[0].startswith("r</think>a\n\n<｜DSML｜tool_calls>")


def test_a_prompt_is_the_beginning_of_its_training_example(tokenizer: Tokenizer) -> None:
    (text,) = render_training_texts([ASK, ANSWER], (), "thinking")
    example = text.example(tokenizer, "")
    prompt = render_messages([ASK], "thinking").ids(tokenizer)
    assert example.tokens[: len(prompt)] == prompt
    assert example.taught == [False] * len(prompt) + [True] * (len(example.tokens) - len(prompt))


def test_each_question_is_a_text_of_its_own_where_reasoning_is_dropped() -> None:
    messages = [ASK, ANSWER, ASK, ASK, ANSWER, ANSWER, ASK]
    texts = [text.text for text in render_training_texts(messages, (), "thinking")]
    assert texts == [encode_messages(messages[:2], "thinking"), encode_messages(messages[:6], "thinking")]
    for mode, tools in (("chat", ()), ("thinking", [TOOL])):
        (whole,) = render_training_texts(messages, tools, mode)
        assert sum(piece.taught and piece.text == EOS for piece in whole.pieces) == 3
    assert render_training_texts([ASK], (), "chat") == []


def _without(token: str, value: Any) -> Any:
    """A value with another text in place of `token`."""
    if isinstance(value, str):
        return value.replace(token, "x").replace(token.replace('"', '\\"'), "x")
    if isinstance(value, list):
        return [_without(token, each) for each in value]
    if isinstance(value, dict):
        return {_without(token, key): _without(token, each) for key, each in value.items()}
    return value
