"""Training texts of a conversation: every taught response follows what a server would show the model."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from seektune.data.chat_format.encodings import Encoding
from seektune.data.chat_format.pieces import ChatText
from seektune.data.chat_format.render import drops_reasoning, render_turns
from seektune.data.chat_format.tokens import ANSWERED
from seektune.data.chat_format.turns import Turn

AUTO = "auto"
"""The mode that follows the reasoning of each response."""


def training_texts(turns: Sequence[Turn], mode: str, effort: str | None, encoding: Encoding) -> list[ChatText]:
    """The texts of `render_training_texts`.

    Raises:
        ValueError: an unknown mode, or an effort that the encoding lacks.
    """
    if mode == AUTO:
        return _by_reasoning(turns, effort, encoding)
    starts = _questions(turns) if drops_reasoning(turns, mode) else []
    stops = [*starts[1:], len(turns)]
    return _taught(render_turns(turns[:stop], mode, True, effort, encoding) for stop in stops)


def _by_reasoning(turns: Sequence[Turn], effort: str | None, encoding: Encoding) -> list[ChatText]:
    """Responses without reasoning in one text of the mode chat, those with reasoning in the mode thinking."""
    if not any(turn.reasoning for turn in turns):
        return training_texts(turns, "chat", effort, encoding)
    if not drops_reasoning(turns, "thinking"):
        return training_texts(turns, "thinking", effort, encoding)
    starts = _questions(turns)
    plain: list[Turn] = []
    reasoned = []
    for start, stop in zip([0, *starts[1:]], [*starts[1:], len(turns)], strict=True):
        thinks = any(turn.reasoning for turn in turns[start:stop])
        plain += [replace(turn, taught=turn.taught and not thinks) for turn in turns[start:stop]]
        reasoned += [turns[:stop]] if thinks else []
    last = max((i for i, turn in enumerate(plain) if turn.role == "assistant" and turn.taught), default=-1)
    return _taught(
        [
            render_turns(plain[: last + 1], "chat", True, effort, encoding),
            *(render_turns(part, "thinking", True, effort, encoding) for part in reasoned),
        ]
    )


def _questions(turns: Sequence[Turn]) -> list[int]:
    """Indices of the turns that a response follows, with the first turn of all; each drops the reasoning before it."""
    return [i for i, turn in enumerate(turns) if turn.role in ANSWERED or i == 0]


def _taught(texts: Iterable[ChatText]) -> list[ChatText]:
    return [text for text in texts if any(piece.taught for piece in text.pieces)]
