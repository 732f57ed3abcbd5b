"""A response as a sequence of blocks (reasoning, text, tool calls), as the Responses and Messages APIs have it."""

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias
from uuid import uuid4

from seektune.generate.detokenize import TextDelta
from seektune.serve.output_parser import OutputParser
from seektune.serve.request_builder import PreparedRequest

BlockKind: TypeAlias = Literal["reasoning", "text", "call"]


@dataclass
class OutputBlock:
    """One block of a response."""

    index: int
    kind: BlockKind
    text: str = ""
    """So far; of a call its arguments as JSON."""
    name: str = ""
    """Of the tool that a call names."""
    call_id: str = ""
    id: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True)
class BlockChange:
    """A block that starts, grows by some text, or stops."""

    step: Literal["start", "delta", "stop"]
    block: OutputBlock
    """One that starts has no text yet."""
    text: str = ""


class OutputBlocks:
    """The blocks of a response, so far."""

    def __init__(self, prepared: PreparedRequest):
        self.blocks: list[OutputBlock] = []
        self.reasoning_tokens = 0
        self.end: str | None = None
        """`stop`, `length` or `tool_calls`, once the response has ended."""
        self.stop: str | None = None
        """The stop string that ended it."""
        self._parser = OutputParser(prepared.thinking, prepared.tags)
        self._open: OutputBlock | None = None

    def add(self, delta: TextDelta) -> list[BlockChange]:
        """Take a delta; returns what it changes."""
        self.reasoning_tokens += self._parser.thinking
        parsed = self._parser.feed(delta.text)
        if delta.end is not None:
            parsed.add(self._parser.flush())
        changes = [*self._append("reasoning", parsed.reasoning), *self._append("text", parsed.content)]
        for call in parsed.calls:
            changes += self._call(call["id"], **call["function"])
        if delta.end is not None:
            changes += self._close()
            self.end = "tool_calls" if parsed.calls else delta.end
            self.stop = delta.stop
        return changes

    def _append(self, kind: BlockKind, text: str) -> list[BlockChange]:
        if not text:
            return []
        block = self._open
        changes: list[BlockChange] = []
        if block is None or block.kind != kind:
            changes += self._close()
            block = OutputBlock(len(self.blocks), kind)
            changes.append(self._start(block))
        block.text += text
        return [*changes, BlockChange("delta", block, text)]

    def _call(self, id: str, name: str, arguments: str) -> list[BlockChange]:
        changes = self._close()
        block = OutputBlock(len(self.blocks), "call", name=name, call_id=id)
        changes.append(self._start(block))
        block.text = arguments
        return [*changes, BlockChange("delta", block, arguments), *self._close()]

    def _start(self, block: OutputBlock) -> BlockChange:
        self.blocks.append(block)
        self._open = block
        return BlockChange("start", replace(block))  # a copy: the block grows before the change is written

    def _close(self) -> list[BlockChange]:
        block = self._open
        self._open = None
        return [] if block is None else [BlockChange("stop", block)]
