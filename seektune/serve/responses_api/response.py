"""Responses of `/v1/responses`, whole or as events."""

import json
import time
from typing import Any
from uuid import uuid4

from seektune.generate.detokenize import TextDelta
from seektune.serve.errors import ApiError
from seektune.serve.output_blocks import BlockChange, OutputBlock, OutputBlocks
from seektune.serve.request_builder import PreparedRequest
from seektune.serve.response_writer import Body, TokenCounts, event_text

PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}
"""Of an item's id, by its block's kind."""
EVENTS = {
    "reasoning": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}
"""Events of an item's text, without `.delta` and `.done`."""


class ResponsesResponse:
    """Writes the response to a `ResponsesRequest`."""

    def __init__(self, model: str, prepared: PreparedRequest, settings: Body):
        """`settings` are those that the response repeats."""
        self._head = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **settings,
        }
        self._counts = TokenCounts.of(prepared)
        self._blocks = OutputBlocks(prepared)
        self._sent = 0

    def opening(self, first: TextDelta) -> list[str]:
        """The response without output."""
        begun = {**self._head, **self._state("in_progress"), "output": [], "usage": None}
        return [self._event(name, response=begun) for name in ("response.created", "response.in_progress")]

    def add(self, delta: TextDelta) -> list[str]:
        """Take a delta; returns its events."""
        self._counts.add(delta)
        return [event for change in self._blocks.add(delta) for event in self._events(change)]

    def closing(self) -> list[str]:
        """The whole response."""
        body = self.body()
        return [self._event(f"response.{body['status']}", response=body)]

    def failure(self, error: ApiError) -> list[str]:
        """The error as an event."""
        fields = {"code": error.code or error.kind, "message": str(error), "param": error.param}
        return [f"event: error\ndata: {json.dumps({'type': 'error', 'sequence_number': self._next(), **fields})}\n\n"]

    def body(self) -> Body:
        """The whole response."""
        status = "incomplete" if self._blocks.end == "length" else "completed"
        output = [_item(block, self._ended(block)) for block in self._blocks.blocks]
        return {**self._head, **self._state(status), "output": output, "usage": self._usage()}

    def _ended(self, block: OutputBlock) -> str:
        """The status of a block that has stopped: of a response that was cut off, the last block was, too."""
        cut = self._blocks.end == "length" and block is self._blocks.blocks[-1]
        return "incomplete" if cut else "completed"

    def _state(self, status: str) -> Body:
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {"status": status, "error": None, "incomplete_details": details}

    def _usage(self) -> Body:
        return {
            "input_tokens": self._counts.prompt,
            "input_tokens_details": {"cached_tokens": self._counts.cached},
            "output_tokens": self._counts.generated,
            "output_tokens_details": {"reasoning_tokens": self._blocks.reasoning_tokens},
            "total_tokens": self._counts.prompt + self._counts.generated,
        }

    def _events(self, change: BlockChange) -> list[str]:
        block = change.block
        place = {"item_id": _item_id(block), "output_index": block.index}
        inner = place if block.kind == "call" else {**place, "content_index": 0}
        extra: Body = {"logprobs": []} if block.kind == "text" else {}
        if change.step == "delta":
            return [self._event(f"{EVENTS[block.kind]}.delta", **inner, delta=change.text, **extra)]
        if change.step == "start":
            item = {**_item(block, "in_progress"), **({} if block.kind == "call" else {"content": []})}
            added = self._event("response.output_item.added", output_index=block.index, item=item)
            return [added, *self._part("added", block, inner)]
        if block.kind == "call":
            done = self._event(f"{EVENTS['call']}.done", **inner, name=block.name, arguments=block.text)
        else:
            done = self._event(f"{EVENTS[block.kind]}.done", **inner, text=block.text, **extra)
        part = self._part("done", block, inner)
        item = _item(block, self._ended(block))
        return [done, *part, self._event("response.output_item.done", output_index=block.index, item=item)]

    def _part(self, step: str, block: OutputBlock, place: Body) -> list[str]:
        if block.kind == "call":
            return []
        return [self._event(f"response.content_part.{step}", **place, part=_content(block))]

    def _event(self, kind: str, /, **fields: Any) -> str:
        return event_text({"type": kind, "sequence_number": self._next(), **fields}, kind)

    def _next(self) -> int:
        self._sent += 1
        return self._sent - 1


def _item(block: OutputBlock, status: str) -> Body:
    """A block as an item of the output."""
    head = {"id": _item_id(block), "status": status}
    if block.kind == "call":
        return {**head, "type": "function_call", "call_id": block.call_id, "name": block.name, "arguments": block.text}
    if block.kind == "reasoning":
        return {**head, "type": "reasoning", "summary": [], "content": [_content(block)]}
    return {**head, "type": "message", "role": "assistant", "content": [_content(block)]}


def _item_id(block: OutputBlock) -> str:
    return f"{PREFIXES[block.kind]}_{block.id}"


def _content(block: OutputBlock) -> Body:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}
