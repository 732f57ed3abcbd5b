"""Responses of `/v1/messages`, whole or as events."""

import json
from typing import Any
from uuid import uuid4

from seektune.generate.detokenize import TextDelta
from seektune.serve.errors import ApiError
from seektune.serve.output_blocks import BlockChange, OutputBlock, OutputBlocks
from seektune.serve.request_builder import PreparedRequest
from seektune.serve.response_writer import Body, TokenCounts, event_text

DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}
"""Type and field of the text that is added to a block, by the block's kind."""
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessagesResponse:
    """Writes the response to a `MessagesRequest`."""

    def __init__(self, model: str, prepared: PreparedRequest):
        self._id = f"msg_{uuid4().hex}"
        self._model = model
        self._counts = TokenCounts.of(prepared)
        self._blocks = OutputBlocks(prepared)

    def opening(self, first: TextDelta) -> list[str]:
        """The message without content."""
        message = {**self._message([]), "usage": self._usage(first.token.cached)}
        return [_event("message_start", message=message)]

    def add(self, delta: TextDelta) -> list[str]:
        """Take a delta; returns its events."""
        self._counts.add(delta)
        return [event for change in self._blocks.add(delta) for event in self._events(change)]

    def closing(self) -> list[str]:
        """Why the message ended, and its tokens."""
        ended = self._ending()
        return [_event("message_delta", delta=ended, usage=self._usage(self._counts.cached)), _event("message_stop")]

    def failure(self, error: ApiError) -> list[str]:
        """The error as an event."""
        return [f"event: error\ndata: {json.dumps(error.messages_body())}\n\n"]

    def body(self) -> Body:
        """The whole message."""
        content = [self._block(block, whole=True) for block in self._blocks.blocks]
        return {**self._message(content), "usage": self._usage(self._counts.cached)}

    def _message(self, content: list[Body]) -> Body:
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": content}
        return {**head, **self._ending()}

    def _ending(self) -> Body:
        found = self._blocks
        reason = "stop_sequence" if found.stop is not None else found.end and STOP_REASONS[found.end]
        return {"stop_reason": reason, "stop_sequence": found.stop}

    def _usage(self, cached: int) -> Body:
        return {
            "input_tokens": self._counts.prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self._counts.generated,
        }

    def _events(self, change: BlockChange) -> list[str]:
        block = change.block
        if change.step == "start":
            return [_event("content_block_start", index=block.index, content_block=self._block(block, whole=False))]
        if change.step == "delta":
            kind, field = DELTAS[block.kind]
            return [_event("content_block_delta", index=block.index, delta={"type": kind, field: change.text})]
        stop = _event("content_block_stop", index=block.index)
        if block.kind != "reasoning":
            return [stop]
        signature = {"type": "signature_delta", "signature": self._id}
        return [_event("content_block_delta", index=block.index, delta=signature), stop]

    def _block(self, block: OutputBlock, whole: bool) -> Body:
        text = block.text if whole else ""
        if block.kind == "call":
            arguments: Any = json.loads(text) if whole else {}
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": arguments}
        if block.kind == "reasoning":
            # nothing is signed; clients send back a signature that is not empty
            return {"type": "thinking", "thinking": text, "signature": self._id if whole else ""}
        return {"type": "text", "text": text, "citations": None}


def _event(name: str, **fields: Any) -> str:
    return event_text({"type": name, **fields}, name)
