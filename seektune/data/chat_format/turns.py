"""Groups messages into DeepSeek-V4's turns; tool results belong to the user's turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seektune.data.chat_format.encodings import Encoding
from seektune.data.chat_format.message import Message, shown
from seektune.data.chat_format.pieces import Pieces, from_message, from_template, joined
from seektune.data.chat_format.tokens import TEXTS, as_json
from seektune.data.chat_format.tool_calls import write_calls


@dataclass(frozen=True)
class TurnBlock:
    """A part of a turn's text; a tool result also has the id of its call."""

    pieces: Pieces
    is_result: bool = False
    call_id: str = ""


@dataclass(frozen=True)
class Turn:
    """Consecutive messages of one side: adjacent messages of the user and of tools are one turn."""

    role: str
    blocks: tuple[TurnBlock, ...]
    """Joined by an empty line."""
    reasoning: str = ""
    task: str | None = None
    """Quick instruction that the turn ends with."""
    ended: bool = True
    """Whether an assistant's turn ends with EOS."""
    taught: bool = True
    """Whether training texts teach an assistant's turn."""
    call_ids: tuple[str, ...] = ()
    """Of an assistant's tool calls, in their order."""
    has_tools: bool = False

    @property
    def pieces(self) -> Pieces:
        """The whole text, without reasoning."""
        return tuple(joined((block.pieces for block in self.blocks), "\n\n"))


def read_turns(messages: Sequence[Mapping[str, Any]], encoding: Encoding, added: int = 0) -> list[Turn]:
    """The turns of a conversation; tool results are in the order of the calls.

    Errors do not count the first `added` messages, which the caller did not write.

    Raises:
        ValueError: naming the message and what is wrong with it.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise ValueError(f"messages must be a list of objects with role and content, not {shown(messages)}")
    turns: list[Turn] = []
    joined: list[TurnBlock] = []
    for index, values in enumerate(messages):
        message = Message(index, values, added)
        _check_known(message, encoding)
        turn = _READERS[message.role](message, encoding)
        # a quick instruction ends its turn: the user's next message begins another
        if turns and turn.role == turns[-1].role == "user" and (message.role == "tool" or turns[-1].task is None):
            joined += turn.blocks
        else:
            _close(turns, joined)
            turns.append(turn)
            joined = list(turn.blocks)
    _close(turns, joined)
    return _in_call_order(turns)


def _close(turns: list[Turn], blocks: Sequence[TurnBlock]) -> None:
    """Give the last turn the blocks of all its messages."""
    if turns:
        turns[-1] = replace(turns[-1], blocks=tuple(blocks))


def _check_known(message: Message, encoding: Encoding) -> None:
    if message.role not in encoding.roles:
        raise message.error(f"has a role that the encoding {encoding.name} lacks")
    if message.task() is not None and message.task() not in encoding.tasks:
        raise message.error(f"has a task, which the encoding {encoding.name} lacks")


def _read_instruction(message: Message, encoding: Encoding) -> Turn:
    tools = _schemas(message.tools(), encoding)
    response_format = message.response_format()
    later = encoding.later_tools if message.index > 0 else None
    extra = []
    if tools:
        template = encoding.tools_text if later is None else (f"{later}\n\n", "")
        extra.append(TurnBlock(from_template(template, "\n".join(map(as_json, tools)))))
    if response_format is not None:
        extra.append(TurnBlock(from_template(_halves("response_format", "{schema}"), as_json(response_format))))
    content = message.content(needed=message.role == "developer" or not extra)
    if message.role == "developer" and not content:
        raise message.error("has no content")
    blocks = (TurnBlock(from_message(content)), *extra)
    return Turn(message.role, blocks, task=message.task(), has_tools=bool(tools) and later is None)


def _schemas(tools: Sequence[Mapping[str, Any]], encoding: Encoding) -> Sequence[Mapping[str, Any]]:
    """The descriptions of tools, as the encoding writes them."""
    if not encoding.plain_tools:
        return tools
    return [
        {"name": tool["name"], "description": tool.get("description") or "", "parameters": tool.get("parameters")}
        for tool in tools
        if not tool.get("defer_loading")
    ]


def _halves(text: str, field: str) -> tuple[str, str]:
    before, _, after = TEXTS[text].partition(field)
    return before, after


def _read_request(message: Message, _: Encoding) -> Turn:
    if message.tools() or message.response_format() is not None:
        raise message.error("brings tools or a response_format; only system and developer messages can")
    return Turn(message.role, (TurnBlock(from_message(message.content())),), task=message.task())


def _read_result(message: Message, _: Encoding) -> Turn:
    call_id = message.field("tool_call_id", str) or ""
    pieces = from_template(_halves("tool_result", "{content}"), message.content())
    return Turn("user", (TurnBlock(pieces, True, call_id),))


def _read_answer(message: Message, encoding: Encoding) -> Turn:
    calls = message.calls()
    reasoning = message.field("reasoning_content", str)
    content = TurnBlock(from_message(message.content(needed=False)))
    return Turn(
        message.role,
        (content, *([TurnBlock(write_calls(calls, encoding.tags))] if calls else [])),
        reasoning or "",
        message.task(),
        ended=not message.field("wo_eos", bool),
        taught=message.field("train", bool) is not False,
        call_ids=message.call_ids(),
        has_tools=bool(message.tools()),
    )


def _in_call_order(turns: Sequence[Turn]) -> list[Turn]:
    """Tool results in the order of the last assistant's calls; texts keep their positions.

    A result of an unknown call counts as one of the first call: so does the official encoder.
    """
    order: dict[str, int] = {}
    ordered = []
    for turn in turns:
        if turn.call_ids:
            order = {call_id: place for place, call_id in enumerate(turn.call_ids) if call_id}
        results = [block for block in turn.blocks if block.is_result]
        by_call = iter(sorted(results, key=lambda block: order.get(block.call_id, 0)))
        blocks = tuple(next(by_call) if block.is_result else block for block in turn.blocks)
        ordered.append(replace(turn, blocks=blocks))
    return ordered


_READERS = {
    "system": _read_instruction,
    "developer": _read_instruction,
    "user": _read_request,
    "latest_reminder": _read_request,
    "assistant": _read_answer,
    "tool": _read_result,
}
