"""Writes the turns of a conversation as the text that the model reads."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from seektune.data.chat_format.encodings import Encoding
from seektune.data.chat_format.pieces import ChatText, Piece, Pieces, from_format, from_message
from seektune.data.chat_format.tokens import ANSWERED, ASSISTANT, BOS, EOS, OPENINGS, TASKS, THINK, THINK_END
from seektune.data.chat_format.turns import Turn, TurnBlock

MODES = ("chat", "thinking")


def check_mode(thinking_mode: str) -> None:
    """Check a thinking mode.

    Raises:
        ValueError: it is none.
    """
    if thinking_mode not in MODES:
        raise ValueError(f"unknown thinking_mode {thinking_mode!r}; it may be {' or '.join(MODES)}")


def render_turns(
    turns: Sequence[Turn], thinking_mode: str, drop_thinking: bool, reasoning_effort: str | None, encoding: Encoding
) -> ChatText:
    """The text of turns; the arguments are those of `encode_messages`.

    Raises:
        ValueError: an unknown mode, or an effort that the encoding lacks.
    """
    check_mode(thinking_mode)
    effort = encoding.effort(reasoning_effort)
    thinking = thinking_mode == "thinking"
    dropping = drop_thinking and drops_reasoning(turns, thinking_mode)
    if dropping:
        last = _last_question(turns)
        turns = [turn for i, turn in enumerate(turns) if i >= last or turn.role != "developer"]
    if thinking:
        turns = _with_effort(turns, effort)
    # the first turn whose responses keep their reasoning
    since = _last_question(turns) if dropping else 0
    return ChatText((*from_format(BOS), *_write(turns, thinking, since, encoding)))


def render_following(turns: Sequence[Turn], thinking_mode: str, encoding: Encoding) -> ChatText:
    """The text of turns that follow a response, and the opening of the next one.

    Raises:
        ValueError: an unknown mode.
    """
    check_mode(thinking_mode)
    return ChatText(tuple(_write(turns, thinking_mode == "thinking", 0, encoding)))


def drops_reasoning(turns: Sequence[Turn], thinking_mode: str) -> bool:
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
    """A turn of the assistant; not taught if its reasoning is dropped."""
    turn = turns[i]
    answers_task = i > 0 and turns[i - 1].task is not None
    thought = (*from_message(turn.reasoning), *from_format(THINK_END))
    pieces = (
        *(thought if thinking and i >= since and not answers_task else ()),
        *turn.pieces,
        *(from_format(EOS) if turn.ended else ()),
    )
    return (piece._replace(taught=turn.taught and i >= since) for piece in pieces)


def _invitation(turns: Sequence[Turn], i: int, thinking: bool, since: int) -> Pieces:
    """The text that ends a turn before a response, or the last turn."""
    turn = turns[i]
    # A reminder after a question follows the opening of a response, as in the official encoder.
    if i + 1 < len(turns) and turns[i + 1].role not in ("assistant", "latest_reminder"):
        return ()
    if turn.task is not None:
        return (*(_header(thinking) if turn.task == "action" else ()), *from_format(TASKS[turn.task]))
    return _header(thinking and i >= since) if turn.role in ANSWERED else ()
