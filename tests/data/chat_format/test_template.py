"""The chat template that exports contain, rendered by transformers, against the encoder."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from seektune import encode_messages
from seektune.data.chat_format.encode import render_training_texts, with_tools
from seektune.data.chat_format.template import ChatTokenizer, chat_template
from seektune.data.tokenizer import Tokenizer
from tests.places import CHAT_ENCODING

from .cases import TOOL, made_answer, made_text, tool_call
from .recipe import our_messages, our_options, recipe_cases

ASK: dict[str, Any] = {"role": "user", "content": "q"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "a", "reasoning_content": "r"}
ENCODINGS = ("preview", "0731")
official = pytest.mark.skipif(not CHAT_ENCODING.is_dir(), reason="the official cases are not here")


@pytest.fixture(scope="module")
def readers(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The saved tokenizers of both encodings, as transformers reads them."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folders: dict[str, Path] = {encoding: tmp_path_factory.mktemp("saved") for encoding in ENCODINGS}
    for encoding, folder in folders.items():
        ChatTokenizer(tokenizer, encoding).save(folder)
    return {encoding: transformers.AutoTokenizer.from_pretrained(folder) for encoding, folder in folders.items()}


def with_objects(messages: Any) -> list[dict[str, Any]]:
    """Messages whose tool calls have objects as arguments, which templates need."""
    copied: list[dict[str, Any]] = json.loads(json.dumps(messages))
    for message in copied:
        for call in message.get("tool_calls") or []:
            arguments = call["function"].get("arguments")
            call["function"]["arguments"] = json.loads(arguments) if isinstance(arguments, str) else arguments
    return copied


def rendered(reader: Any, messages: Any, thinking_mode: str, **options: Any) -> str:
    kept = {key: value for key, value in options.items() if value is not None}
    found = reader.apply_chat_template(
        with_objects(messages), tokenize=False, add_generation_prompt=True, thinking=thinking_mode == "thinking", **kept
    )
    assert isinstance(found, str)
    return found


def made_conversation(generator: random.Random) -> list[dict[str, Any]]:
    """Messages of all roles in any order."""
    messages: list[dict[str, Any]] = []
    for _ in range(generator.randrange(1, 9)):
        role = generator.choice(("system", "user", "user", "assistant", "assistant", "tool", "developer", "reminder"))
        if role == "assistant":
            calls = [tool_call("f", {"x": [1.5, None]}, generator.choice(("c1", "c2", ""))) for _ in range(3)]
            message = made_answer(generator) | ({"tool_calls": calls} if generator.random() < 0.5 else {})
            messages.append(message | ({"content": None} if generator.random() < 0.2 else {}))
            continue
        name = "latest_reminder" if role == "reminder" else role
        text: Any = made_text(generator) or "x"
        content = [{"type": "text", "text": text}] * 2 if generator.random() < 0.2 else text
        message = {"role": name, "content": content}
        if role == "tool":
            message["tool_call_id"] = generator.choice(("c1", "c2", "lost"))
        if role in ("system", "developer") and generator.random() < 0.2:
            message["tools"] = [TOOL]
        if role in ("system", "developer") and generator.random() < 0.2:
            message["response_format"] = {"type": "object", "é": [1]}
        messages.append(message)
    return messages


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_template_writes_what_the_encoder_writes(readers: dict[str, Any], encoding: Any) -> None:
    generator = random.Random(23)
    efforts = {"preview": (None, "high", "max"), "0731": (None, "low", "high", "max")}[encoding]
    for _ in range(200):
        messages = made_conversation(generator)
        mode = generator.choice(("chat", "thinking"))
        effort = generator.choice(efforts)
        drop = generator.random() < 0.7
        expected = encode_messages(messages, mode, drop, effort, encoding)
        found = rendered(readers[encoding], messages, mode, drop_thinking=drop, reasoning_effort=effort)
        assert found == expected, messages


def test_tools_are_described_on_the_first_system_message(readers: dict[str, Any]) -> None:
    system = {"role": "system", "content": "s"}
    for messages in ([ASK], [system, ASK], [{**system, "tools": [TOOL]}, ASK, ANSWER, ASK], [ASK, system, ASK]):
        for mode in ("chat", "thinking"):
            expected = encode_messages(with_tools(messages, [TOOL]), mode)
            assert rendered(readers["preview"], messages, mode, tools=[TOOL]) == expected


def test_a_prompt_ends_with_the_header_only_where_it_is_asked_for(readers: dict[str, Any]) -> None:
    reader = readers["preview"]
    prompt = reader.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True)
    assert reader.apply_chat_template([ASK], tokenize=False) == prompt.removesuffix("<｜Assistant｜></think>")
    whole = reader.apply_chat_template([ASK, ANSWER], tokenize=False)
    assert whole == encode_messages([ASK, ANSWER])
    assert whole.startswith(prompt)
    thinking = reader.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert thinking == encode_messages([ASK], "thinking")


def test_a_response_is_continued_without_eos(readers: dict[str, Any]) -> None:
    found = readers["preview"].apply_chat_template([ASK, ANSWER], tokenize=False, continue_final_message=True)
    assert found == encode_messages([ASK, {**ANSWER, "wo_eos": True}])


@pytest.mark.parametrize("mode", ["chat", "thinking"])
def test_the_mask_of_responses_is_what_training_teaches(
    readers: dict[str, Any], tokenizer: Tokenizer, mode: str
) -> None:
    messages = [ASK, {**ANSWER, "tool_calls": [tool_call("f", {"k": 1})]}, {"role": "tool", "content": "3"}, ANSWER]
    found = readers["0731"].apply_chat_template(
        with_objects(messages),
        tools=[TOOL],
        thinking=mode == "thinking",
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    (text,) = render_training_texts(messages, [TOOL], mode, encoding="0731")
    example = text.example(tokenizer, "")
    assert found["input_ids"] == example.tokens
    assert [bool(taught) for taught in found["assistant_masks"]] == example.taught


@pytest.mark.parametrize(
    ("messages", "options", "complaint"),
    [
        ([{**ASK, "task": "title"}], {}, "quick instructions .* use encode_messages"),
        ([ASK, {**ANSWER, "wo_eos": True}], {}, "wo_eos .* use continue_final_message"),
        ([{"role": "tutor", "content": "x"}], {}, "unknown role tutor"),
        ([{"role": "user"}], {}, "a message of the user has no content"),
        ([{"role": "user", "content": [{"type": "image"}]}], {}, "a part of content has the type image"),
        ([{**ASK, "tools": [TOOL]}], {}, "tools and response_format belong on a system or developer message"),
        ([ASK], {"reasoning_effort": "low"}, "reasoning_effort must be one of high, max, not low"),
    ],
)
def test_what_a_template_cannot_write_is_refused(
    readers: dict[str, Any], messages: Any, options: dict[str, Any], complaint: str
) -> None:
    jinja2 = pytest.importorskip("jinja2")
    with pytest.raises(jinja2.TemplateError, match=complaint):
        rendered(readers["preview"], messages, "thinking", **options)


def test_arguments_as_text_are_refused_unless_empty(readers: dict[str, Any]) -> None:
    jinja2 = pytest.importorskip("jinja2")
    for arguments in ("", "null", "{}", None):
        call = {"function": {"name": "f", "arguments": arguments}}
        messages = [ASK, {"role": "assistant", "tool_calls": [call]}]
        assert readers["preview"].apply_chat_template(messages, tokenize=False) == encode_messages(messages)
    call = {"function": {"name": "f", "arguments": '{"k": 1}'}}
    with pytest.raises(jinja2.TemplateError, match="must be objects; call json"):
        readers["preview"].apply_chat_template([ASK, {"role": "assistant", "tool_calls": [call]}], tokenize=False)


def test_v41_has_no_template() -> None:
    with pytest.raises(ValueError, match="the encoding v41 has no chat template; use encode_messages"):
        chat_template("v41")


@official
def test_the_official_cases_come_out_of_the_template(readers: dict[str, Any]) -> None:
    cases = json.loads((CHAT_ENCODING / "cases.json").read_text(encoding="utf-8"))
    written = [case for case in cases if not any(message.get("task") for message in case["messages"])]
    assert len(written) == 36
    for case in written:
        assert rendered(readers["preview"], case["messages"], **case["options"]) == case["text"], case["name"]


@official
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_official_conversations_come_out_of_the_template(readers: dict[str, Any], number: int) -> None:
    messages = json.loads((CHAT_ENCODING / f"official_input_{number}.json").read_text(encoding="utf-8"))
    tools = messages["tools"] if isinstance(messages, dict) else None
    messages = messages["messages"] if isinstance(messages, dict) else messages
    expected = (CHAT_ENCODING / f"official_output_{number}.txt").read_bytes().decode("utf-8")
    assert rendered(readers["preview"], messages, "thinking", tools=tools) == expected


@official
def test_cases_of_deepseeks_library_come_out_of_the_template(readers: dict[str, Any]) -> None:
    equal = 0
    for case in recipe_cases("render", "0731"):
        messages, options = our_messages(case), our_options(case)
        if not messages or any(message.get("wo_eos") for message in messages) or "no object" in case["name"]:
            continue
        encoding = options.pop("encoding")
        assert rendered(readers[encoding], messages, **options) == encode_messages(messages, **options, encoding="0731")
        equal += 1
    assert equal == 53
