"""The text of an answer in the chat format, as it comes, into reasoning, content and tool calls."""

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from seektune.data.chat_format.tokens import THINK_END
from seektune.data.chat_format.tool_calls import CALLS_BEGIN, read_calls
from seektune.generate.detokenize import undecided

CALLS_MARK = f"\n\n{CALLS_BEGIN}"
"""What separates content from tool calls."""


@dataclass
class ParsedDelta:
    """Parts of a message, or what they grew by."""

    reasoning: str = ""
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """In OpenAI's form, with ids."""

    def add(self, more: "ParsedDelta") -> None:
        """Grow by more."""
        self.reasoning = self.reasoning + more.reasoning
        self.content = self.content + more.content
        self.calls += more.calls

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class OutputParser:
    """Takes an answer's text apart; what may be the beginning of a mark is held back until it is decided."""

    def __init__(self, thinking: bool):
        self._thinking = thinking
        self._calling = False
        self._held = ""

    def hear(self, text: str) -> ParsedDelta:
        """What the parts grow by. Tool calls come whole, at the end."""
        self._held += text
        parts = ParsedDelta()
        if self._thinking:
            parts.reasoning, ended = self._until(THINK_END)
            if not ended:
                return parts
            self._thinking, self._held = False, self._held.removeprefix(THINK_END)
        if not self._calling:
            parts.content, self._calling = self._until(CALLS_MARK)
        return parts

    def rest(self) -> ParsedDelta:
        """What was held back, when the answer has ended; calls that cannot be read are content."""
        held = self._held
        self._held = ""
        if self._calling:
            try:
                calls = read_calls(held.removeprefix("\n\n"))
            except ValueError:
                return ParsedDelta(content=held)
            return ParsedDelta(calls=[{"id": f"call_{uuid4().hex}", **call} for call in calls])
        return ParsedDelta(reasoning=held) if self._thinking else ParsedDelta(content=held)

    def _until(self, mark: str) -> tuple[str, bool]:
        """Text before a mark, as far as it is certain, and whether the mark is there; only that text is let go."""
        place = self._held.find(mark)
        found = place >= 0
        stop = place if found else len(self._held) - undecided(self._held, [mark])
        given = self._held[:stop]
        self._held = self._held[stop:]
        return given, found
