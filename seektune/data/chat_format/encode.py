"""Encodes messages as a prompt, byte for byte as the official encoder does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from seektune.data.chat_format.choices import DEFAULT, EncodingName
from seektune.data.chat_format.encodings import Encoding, find_encoding
from seektune.data.chat_format.message import shown
from seektune.data.chat_format.pieces import ChatText, Piece, Pieces, from_format, from_message
from seektune.data.chat_format.tokens import ANSWERED, ASSISTANT, BOS, EOS, OPENINGS, TASKS, THINK, THINK_END
from seektune.data.chat_format.turns import Turn, TurnBlock, read_turns

MODES = ("chat", "thinking")


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
            `task` and `wo_eos` (an answer that goes on); other fields are not looked at.
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
    return _render(read_turns(messages, rules), thinking_mode, drop_thinking, reasoning_effort, rules)


def render_chat_prompt(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    thinking_mode: str = "chat",
    reasoning_effort: str | None = None,
    encoding: EncodingName = DEFAULT,
) -> ChatText:
    """The prompt of a conversation that the model shall continue; `tools` are described on its system message.

    The other arguments are those of `encode_messages`.

    Raises:
        ValueError: as `encode_messages`, or the conversation does not ask for an answer.
    """
    if isinstance(messages, list | tuple) and not messages:
        raise ValueError("messages is empty; it needs at least one that asks for an answer")
    rules = find_encoding(encoding)
    turns = read_turns(with_tools(messages, tools), rules)
    last = turns[-1]
    continues = last.role == "assistant" and not last.ended
    if last.role not in ANSWERED and last.task is None and not continues:
        raise ValueError(
            f"the last message must have the role user, developer or tool, not {last.role}; "
            "mark an answer `wo_eos` to go on with it"
        )
    return _render(turns, thinking_mode, True, reasoning_effort, rules)


def render_training_texts(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    thinking_mode: str = "chat",
    reasoning_effort: str | None = None,
    encoding: EncodingName = DEFAULT,
) -> list[ChatText]:
    """Texts that teach every response of a conversation, each after what a server would show the model.

    One text if no reasoning is dropped; otherwise one for each question, which ends with its responses. The arguments
    are those of `render_chat_prompt`.

    Raises:
        ValueError: as `encode_messages`.
    """
    rules = find_encoding(encoding)
    turns = read_turns(with_tools(messages, tools), rules)
    stops = [i for i, turn in enumerate(turns) if turn.role in ANSWERED] if _drops(turns, thinking_mode) else []
    texts = [
        _render(turns[:stop], thinking_mode, True, reasoning_effort, rules) for stop in (*stops, len(turns)) if stop
    ]
    return [text for text in texts if any(piece.taught for piece in text.pieces)]


def with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """The messages, with the tools on the first system message, which is added if missing.

    Raises:
        ValueError: the tools, or those of the system message, are not a list.
    """
    if not tools or not isinstance(messages, list | tuple):  # the reader of messages refuses anything else
        return messages
    if not isinstance(tools, list | tuple):
        raise ValueError(f"tools must be a list, not {shown(tools)}")
    first = messages[0] if messages else {}
    if not isinstance(first, Mapping) or first.get("role") != "system":
        return [{"role": "system", "content": "", "tools": tools}, *messages]
    own_tools = first.get("tools") or []
    if not isinstance(own_tools, list):
        raise ValueError("messages[0] (system): tools must be a list")
    return [{**first, "tools": [*own_tools, *tools]}, *messages[1:]]


def check_mode(thinking_mode: str) -> None:
    """Check a thinking mode.

    Raises:
        ValueError: it is none.
    """
    if thinking_mode not in MODES:
        raise ValueError(f"unknown thinking_mode {thinking_mode!r}; it may be {' or '.join(MODES)}")


def _render(
    turns: Sequence[Turn], thinking_mode: str, drop_thinking: bool, reasoning_effort: str | None, encoding: Encoding
) -> ChatText:
    check_mode(thinking_mode)
    effort = encoding.effort(reasoning_effort)
    thinking = thinking_mode == "thinking"
    dropping = drop_thinking and _drops(turns, thinking_mode)
    if dropping:
        last = _last_question(turns)
        turns = [turn for i, turn in enumerate(turns) if i >= last or turn.role != "developer"]
    if thinking:
        turns = _with_effort(turns, effort)
    # the first turn whose responses keep their reasoning
    since = _last_question(turns) if dropping else 0
    return ChatText((*from_format(BOS), *_write(turns, thinking, since, encoding)))


def _drops(turns: Sequence[Turn], thinking_mode: str) -> bool:
    """Whether responses before the last question lose their reasoning by default."""
    return thinking_mode == "thinking" and not any(turn.has_tools for turn in turns)


def _last_question(turns: Sequence[Turn]) -> int:
    """Index of the last turn that a response follows; 0 if there is none."""
    return max((i for i, turn in enumerate(turns) if turn.role in ANSWERED), default=0)


def _with_effort(turns: Sequence[Turn], effort: str) -> Sequence[Turn]:
    """The turns, with the text of an effort before that of the first system turn, which is added if missing."""
    if not effort or not turns:
        return turns
    has_system = turns[0].role == "system"
    first = turns[0] if has_system else Turn("system", (TurnBlock(()),))
    rest = turns[1:] if has_system else turns
    return [replace(first, blocks=(TurnBlock(from_format(effort.removesuffix("\n\n"))), *first.blocks)), *rest]


def _write(turns: Sequence[Turn], thinking: bool, since: int, encoding: Encoding) -> Iterator[Piece]:
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            if encoding.header_first:
                yield from _header(thinking and i >= since)
            yield from _response(turns, i, thinking, since)
        else:
            yield from from_format(encoding.system if turn.role == "system" else OPENINGS[turn.role])
            yield from turn.pieces
        if not encoding.header_first:
            yield from _invitation(turns, i, thinking, since)
    if encoding.header_first and (not turns or turns[-1].role != "assistant"):
        yield from _header(thinking)


def _header(thinking: bool) -> Pieces:
    """What a response follows."""
    return from_format(ASSISTANT + (THINK if thinking else THINK_END))


def _response(turns: Sequence[Turn], i: int, thinking: bool, since: int) -> Iterator[Piece]:
    """A turn of the assistant; taught unless its reasoning is dropped."""
    turn = turns[i]
    answers_task = i > 0 and turns[i - 1].task is not None
    thought = (*from_message(turn.reasoning), *from_format(THINK_END))
    pieces = (
        *(thought if thinking and i >= since and not answers_task else ()),
        *turn.pieces,
        *(from_format(EOS) if turn.ended else ()),
    )
    return (piece._replace(taught=i >= since) for piece in pieces)


def _invitation(turns: Sequence[Turn], i: int, thinking: bool, since: int) -> Pieces:
    """The text that ends a turn before a response, or the last turn."""
    turn = turns[i]
    # A reminder after a question follows the opening of a response, as in the official encoder.
    if i + 1 < len(turns) and turns[i + 1].role not in ("assistant", "latest_reminder"):
        return ()
    if turn.task is not None:
        return (*(_header(thinking) if turn.task == "action" else ()), *from_format(TASKS[turn.task]))
    return _header(thinking and i >= since) if turn.role in ANSWERED else ()
