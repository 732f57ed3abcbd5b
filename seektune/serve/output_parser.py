"""Splits a streamed chat response into reasoning, content and tool calls."""

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from seektune.data.chat_format.encodings import V4_TAGS, CallTags
from seektune.data.chat_format.tokens import THINK_END
from seektune.data.chat_format.tool_calls import read_calls
from seektune.generate.detokenize import partial_match_length


@dataclass
class ParsedDelta:
    """Parts of a message, or text appended to them."""

    reasoning: str = ""
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """In OpenAI's form, with ids."""

    def add(self, more: "ParsedDelta") -> None:
        """Append another delta."""
        self.reasoning = self.reasoning + more.reasoning
        self.content = self.content + more.content
        self.calls += more.calls

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class OutputParser:
    """Incremental parser; text that may begin a mark is held back until the mark is complete or ruled out."""

    def __init__(self, thinking: bool, tags: CallTags = V4_TAGS):
        self._thinking = thinking
        self._tags = tags
        self._calls_mark = f"\n\n{tags.begin}"
        self._in_calls = False
        self._held = ""

    @property
    def thinking(self) -> bool:
        """Whether the reasoning has not ended."""
        return self._thinking

    def feed(self, text: str) -> ParsedDelta:
        """Parse more text; returns what it adds to each part. Tool calls are returned whole, by `flush`."""
        self._held += text
        parts = ParsedDelta()
        if self._thinking:
            parts.reasoning, ended = self._until(THINK_END)
            if not ended:
                return parts
            self._thinking, self._held = False, self._held.removeprefix(THINK_END)
        if not self._in_calls:
            parts.content, self._in_calls = self._until(self._calls_mark)
        return parts

    def flush(self) -> ParsedDelta:
        """What was held back, once the response has ended; malformed tool calls are content."""
        held = self._held
        self._held = ""
        if self._in_calls:
            try:
                calls = read_calls(held.removeprefix("\n\n"), self._tags)
            except ValueError:
                return ParsedDelta(content=held)
            return ParsedDelta(calls=[{"id": f"call_{uuid4().hex}", **call} for call in calls])
        return ParsedDelta(reasoning=held) if self._thinking else ParsedDelta(content=held)

    def _until(self, mark: str) -> tuple[str, bool]:
        """Take the text before a mark, as far as it is certain; also whether the mark was found."""
        position = self._held.find(mark)
        found = position >= 0
        stop = position if found else len(self._held) - partial_match_length(self._held, [mark])
        text = self._held[:stop]
        self._held = self._held[stop:]
        return text, found
