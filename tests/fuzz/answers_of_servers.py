"""Targets: what reward servers and tool servers answer."""

from pathlib import Path
from typing import Any

from seektune.rewards.json_server import JsonServer
from seektune.rewards.sample import RewardSample
from seektune.rewards.server import ServerReward
from seektune.rewards.tool_server import ToolRequest, ToolServer
from tests.fuzz.target import Read, Target, as_json

CALLS = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}] * 2
RESULTS = {"messages": [{"role": "tool", "tool_call_id": f"call_1_{i}", "content": "4"} for i in (1, 0)]}


class Canned(JsonServer):
    """A server whose answer is at hand."""

    answer = b""

    def post(self, value: Any) -> Any:
        return self._parsed(Canned.answer)


def server() -> Canned:
    return Canned("made", "values", "http://localhost", 1.0, 0)


def open_rewards(folder: Path) -> Read:
    reward = ServerReward(server())

    def read(content: bytes) -> None:
        Canned.answer = content
        assert all(abs(each) < float("inf") for each in reward(list[RewardSample]()))

    return read


def open_tools(folder: Path) -> Read:
    tools = ToolServer(server(), max_result_bytes=8, concurrency=1)

    def read(content: bytes) -> None:
        Canned.answer = content
        (results,) = tools([ToolRequest("s", 1, CALLS)])
        assert [len(each.encode()) <= tools.max_result_bytes for each in results] == [True] * len(CALLS)

    return read


SERVERS = (
    Target("rewards", open_rewards, ({"rewards": [1, 0.5, -2]},), as_json, is_file=False),
    Target("tools", open_tools, (RESULTS,), as_json, is_file=False),
)
