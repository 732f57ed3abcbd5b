"""Tools in conversations: which are described, and which are called."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seektune.data.conversations.conversation import ConversationRow


@dataclass
class ToolCounts:
    """Counts of a dataset's tools by name."""

    described: Counter[str] = field(default_factory=Counter)
    """Rows that describe the tool."""
    called: Counter[str] = field(default_factory=Counter)
    """Calls of the tool."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Calls in rows that do not describe the tool."""

    def add(self, conversation: ConversationRow) -> None:
        """Count the tools of a conversation that the chat format accepts."""
        tools = [*conversation.tools, *(tool for each in conversation.messages for tool in each.get("tools") or ())]
        names = {_name(tool) for tool in tools}
        self.described.update(names)
        for message in conversation.messages:
            calls = [_name(call) for call in message.get("tool_calls") or ()]
            self.called.update(calls)
            self.unknown.update(name for name in calls if name not in names)


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])
