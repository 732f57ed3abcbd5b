"""A tool server: tool calls of sampled answers are sent as JSON over HTTP, and their results come back."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from seektune.io.text import on_one_line
from seektune.rewards.json_server import JsonServer

QUOTED = 100
"""Characters of a wrong answer that are quoted."""


@dataclass(frozen=True)
class ToolRequest:
    """The calls of one response."""

    session: str
    """Names the answer that the response belongs to; it begins with turn 1."""
    turn: int
    calls: Sequence[Mapping[str, Any]]
    """In OpenAI's form, without ids."""

    def ids(self) -> list[str]:
        """The ids that its calls are sent with."""
        return [f"call_{self.turn}_{number}" for number in range(len(self.calls))]


@dataclass(frozen=True)
class ToolServer:
    """The results that a server gives."""

    server: JsonServer
    max_result_bytes: int
    """UTF-8 bytes of a result that are kept."""
    concurrency: int
    """Requests that are sent at a time."""

    def __call__(self, requests: Sequence[ToolRequest]) -> list[list[str]]:
        """The results of each request, in the order of its calls.

        Raises:
            Interrupted: a signal asked to stop.
            OSError: the server cannot be reached, or answers with an error at each try.
            ValueError: its answer is not a message with the role `tool` for each call.
        """
        with ThreadPoolExecutor(self.concurrency) as threads:
            return list(threads.map(self._results, requests))

    def _results(self, request: ToolRequest) -> list[str]:
        ids = request.ids()
        calls = [{**call, "id": call_id} for call, call_id in zip(request.calls, ids, strict=True)]
        found = self.server.post({"session": request.session, "turn": request.turn, "tool_calls": calls})
        pairs = _contents(found)
        if sorted(name for name, _ in pairs) != sorted(ids):
            raise ValueError(
                f'the tool server {self.server.url} must answer with {{"messages": [{{"role": "tool", "tool_call_id": '
                f'ID, "content": TEXT}}, ...]}}, one for each call, not {on_one_line(json.dumps(found))[:QUOTED]}'
            )
        contents = dict(pairs)
        return [self._cut(contents[call_id]) for call_id in ids]

    def _cut(self, content: str) -> str:
        return content.encode(errors="replace")[: self.max_result_bytes].decode(errors="ignore")


def _contents(found: Any) -> list[tuple[str, str]]:
    """The ids of the calls of tool messages, and their texts; empty if the value is something else."""
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        return []
    pairs = [(each.get("tool_call_id"), each.get("content")) for each in messages if each.get("role") == "tool"]
    return [(name, text) for name, text in pairs if isinstance(name, str) and isinstance(text, str)]
