"""Encodes messages as a prompt, byte for byte as the official encoder does."""

from collections.abc import Mapping, Sequence
from typing import Any

from seektune.data.chat_format.choices import DEFAULT, EncodingName
from seektune.data.chat_format.encodings import find_encoding
from seektune.data.chat_format.message import check_tools
from seektune.data.chat_format.pieces import ChatText
from seektune.data.chat_format.render import render_following, render_turns
from seektune.data.chat_format.tokens import ANSWERED
from seektune.data.chat_format.training import training_texts
from seektune.data.chat_format.turns import read_turns


def encode_messages(
    messages: Sequence[Mapping[str, Any]],
    thinking_mode: str = "chat",
    drop_thinking: bool = True,
    reasoning_effort: str | None = None,
    encoding: EncodingName = DEFAULT,
) -> str:
    """The prompt of a conversation, or its whole text if it ends with a response.

    Args:
        messages: objects with `role` (`system`, `user`, `assistant`, `tool`, `developer`, `latest_reminder`),
            `content` and, by role, `reasoning_content`, `tool_calls`, `tool_call_id`, `tools`, `response_format`,
            `task`, `wo_eos` (an answer that goes on) and `train`; other fields are not looked at.
        thinking_mode: `thinking` writes reasoning and asks for it, `chat` does neither.
        drop_thinking: whether answers before the last question lose their reasoning, and developers' messages before
            it go; never where tools are described.
        reasoning_effort: an effort of the encoding, or None for its default; it changes the text in thinking mode only.
        encoding: `preview`, `0731` or `v41`: that of the checkpoint.

    Raises:
        ValueError: naming the message and what is wrong with it.
    """
    return render_messages(messages, thinking_mode, drop_thinking, reasoning_effort, encoding).text


def render_messages(
    messages: Sequence[Mapping[str, Any]],
    thinking_mode: str = "chat",
    drop_thinking: bool = True,
    reasoning_effort: str | None = None,
    encoding: EncodingName = DEFAULT,
) -> ChatText:
    """The text that `encode_messages` gives, in which control tokens are kept apart from text of messages.

    Raises:
        ValueError: as `encode_messages`.
    """
    rules = find_encoding(encoding)
    return render_turns(read_turns(messages, rules), thinking_mode, drop_thinking, reasoning_effort, rules)


def render_chat_prompt(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    thinking_mode: str = "chat",
    reasoning_effort: str | None = None,
    encoding: EncodingName = DEFAULT,
    response_format: Mapping[str, Any] | None = None,
) -> ChatText:
    """The prompt of a conversation that the model shall continue.

    `tools` and `response_format` (a JSON schema) are described on its system message; a response format that the
    message has itself stays. The other arguments are those of `encode_messages`.

    Raises:
        ValueError: as `encode_messages`, or the conversation does not ask for an answer.
    """
    if isinstance(messages, list | tuple) and not messages:
        raise ValueError("messages is empty; it needs at least one that asks for an answer")
    rules = find_encoding(encoding)
    whole = with_response_format(with_tools(messages, tools), response_format)
    turns = read_turns(whole, rules, _added(whole, messages))
    last = turns[-1]
    continues = last.role == "assistant" and not last.ended
    if last.role not in ANSWERED and last.task is None and not continues:
        raise ValueError(
            f"the last message must have the role user, developer or tool, not {last.role}; "
            "mark an answer `wo_eos` to go on with it"
        )
    return render_turns(turns, thinking_mode, True, reasoning_effort, rules)


def render_tool_results(
    results: Sequence[str], thinking_mode: str = "chat", encoding: EncodingName = DEFAULT
) -> ChatText:
    """The text between a response that calls tools and the next response.

    `results` are in the order of the calls. The response keeps its reasoning, as in every conversation with tools.

    Raises:
        ValueError: an unknown mode.
    """
    rules = find_encoding(encoding)
    turns = read_turns([{"role": "tool", "content": result} for result in results], rules)
    return render_following(turns, thinking_mode, rules)


def render_training_texts(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    thinking_mode: str = "chat",
    reasoning_effort: str | None = None,
    encoding: EncodingName = DEFAULT,
) -> list[ChatText]:
    """Texts that teach the responses of a conversation, each after what a server would show the model.

    One text if no reasoning is dropped; otherwise one for each question, which ends with its responses. A message with
    `"train": false` is read and not taught. The arguments are those of `render_chat_prompt`; a `thinking_mode` of
    `auto` means thinking for responses with reasoning and chat for others (of a conversation with tools: thinking for
    all, if one has reasoning).

    Raises:
        ValueError: as `encode_messages`.
    """
    rules = find_encoding(encoding)
    whole = with_tools(messages, tools)
    turns = read_turns(whole, rules, _added(whole, messages))
    return training_texts(turns, thinking_mode, reasoning_effort, rules)


def describes_tools(prompt: str, encoding: EncodingName = DEFAULT) -> bool:
    """Whether the text of a prompt describes tools."""
    rules = find_encoding(encoding)
    headings = [rules.tools_text[0], *([] if rules.later_tools is None else [rules.later_tools])]
    return any(heading in prompt for heading in headings)


def with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """The messages, with the tools on the first system message, which is added if missing.

    Raises:
        ValueError: the tools are not functions with names, or those of the system message are not a list.
    """
    if not tools or not isinstance(messages, list | tuple):  # the reader of messages refuses anything else
        return messages
    check_tools(tools)
    system, others = _split_system(messages)
    own_tools = system.get("tools") or []
    if not isinstance(own_tools, list):
        raise ValueError("messages[0] (system): tools must be a list")
    return [{**system, "tools": [*own_tools, *tools]}, *others]


def with_response_format(
    messages: Sequence[Mapping[str, Any]], response_format: Mapping[str, Any] | None
) -> Sequence[Mapping[str, Any]]:
    """The messages, with a JSON schema on the first system message, which is added if missing."""
    if response_format is None or not isinstance(messages, list | tuple):
        return messages
    system, others = _split_system(messages)
    return [{"response_format": response_format, **system}, *others]


def _added(whole: Sequence[Mapping[str, Any]], messages: Sequence[Mapping[str, Any]]) -> int:
    """How many messages of the whole conversation stand before those that the caller wrote."""
    return 0 if whole is messages else len(whole) - len(messages)


def _split_system(messages: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """The first system message, or an empty one, and the other messages."""
    first = messages[0] if messages else {}
    if isinstance(first, Mapping) and first.get("role") == "system":
        return first, messages[1:]
    return {"role": "system", "content": ""}, messages
