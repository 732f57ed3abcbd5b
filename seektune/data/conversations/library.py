"""The same conversation as DeepSeek's own library deepseek-recipe writes it, where that is installed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.pieces import ChatText
from seektune.data.chat_format.tokens import ASSISTANT, EOS, THINK, THINK_END
from seektune.data.conversations.conversation import ChatMessage, ConversationRow
from seektune.data.conversations.teaching import Teaching

MODULE = "deepseek_recipe"
PACKAGE = "deepseek-recipe"
WRITERS = {"preview": "DeepseekV4Encoding", "0731": "DeepseekV4Encoding", "v41": "DeepseekV41Encoding"}
"""The library's encoding for each of ours."""
EFFORTS: Mapping[str, Mapping[str | None, str]] = {
    "preview": {None: "low", "high": "low", "max": "high"},
    "0731": {None: "low"},
    "v41": {None: "high"},
}
"""The library's effort that writes the text of ours, where it has another name."""
CONTEXT = 30
"""Characters shown on either side of a difference."""


@dataclass(frozen=True)
class LibraryComparison:
    """What the library writes otherwise, one line for each response."""

    version: str
    responses: int
    """Taught responses that were compared."""
    differences: list[str]


def compare_with_library(
    conversation: ConversationRow, teaching: Teaching, texts: Sequence[ChatText]
) -> LibraryComparison | None:
    """Compare each taught response, and what it follows, with the library's text; None if it is not installed.

    Args:
        conversation: as the row has it.
        teaching: what wrote the texts.
        texts: the training texts of the conversation.
    """
    if find_spec(MODULE) is None:
        return None
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        return None
    marked = teaching.marked(conversation)
    taught = [i for i, message in enumerate(marked.messages) if message.get("train")]
    found = ((i, _difference(marked, i, teaching, [text.text for text in texts])) for i in taught)
    return LibraryComparison(
        installed, len(taught), [f"messages[{i}] (assistant): {what}" for i, what in found if what]
    )


def _difference(conversation: ConversationRow, response: int, teaching: Teaching, ours: Sequence[str]) -> str:
    """How the library writes a response and what it follows; empty if one of our texts begins so."""
    try:
        theirs = library_text(conversation, response, teaching)
    except (ValueError, TypeError, KeyError) as error:
        return f"the library cannot write it ({error})"
    nearest = max(ours, key=lambda text: _common(text, theirs))
    common = _common(nearest, theirs)
    if common == len(theirs):
        return ""
    start = max(common - CONTEXT, 0)
    stop = common + CONTEXT
    return f"here {nearest[start:stop]!r}, the library writes {theirs[start:stop]!r}"


def library_text(conversation: ConversationRow, response: int, teaching: Teaching) -> str:
    """The prompt and the completion of a response as the library writes them.

    Raises:
        ValueError, TypeError, KeyError: the library has no such message.
    """
    import deepseek_recipe

    thinking = _thinks(conversation, response, teaching)
    tools = [_tool(tool) for tool in conversation.tools]
    # with tools or in chat mode a response that is not marked as a beginning has the ending that training needs
    as_prefix = thinking and not tools
    made = [_message(message, thinking, False) for message in conversation.messages[:response]]
    made.append(_message(conversation.messages[response], thinking, as_prefix))
    if conversation.system:
        made.insert(0, deepseek_recipe.SystemMessage(conversation.system))
    effort = conversation.reasoning_effort or teaching.reasoning_effort
    asked = deepseek_recipe.Conversation(
        made,
        thinking_mode=thinking,
        tools=tools or None,
        reasoning_effort=_effort(teaching.encoding, effort),
    )
    written = vars(deepseek_recipe)[WRITERS[teaching.encoding]]().render_conversation(asked).prompt
    if as_prefix:
        return f"{written}{EOS}"
    return str(written).removesuffix(THINK).removesuffix(THINK_END).removesuffix(ASSISTANT)


def _effort(encoding: EncodingName, effort: str | None) -> Any:
    """The library's name of an effort."""
    return EFFORTS[encoding].get(effort, effort)


def _thinks(conversation: ConversationRow, response: int, teaching: Teaching) -> bool:
    mode = conversation.thinking or teaching.thinking
    if mode != "auto":
        return mode == "thinking"
    relevant = conversation.messages if conversation.tools else [conversation.messages[response]]
    return any(message.get("reasoning_content") for message in relevant)


def _message(message: ChatMessage, thinking: bool, prefix: bool) -> Any:
    import deepseek_recipe

    content = message.get("content") or ""
    if not isinstance(content, str):
        raise ValueError("content that is a list of parts")
    role = message["role"]
    if role == "assistant":
        reasoning = message.get("reasoning_content") or ""
        calls = [_call(call) for call in message.get("tool_calls") or ()]
        return deepseek_recipe.AssistantMessage(content, reasoning if thinking else None, calls or None, prefix)
    if role == "tool":
        return deepseek_recipe.ToolMessage(content, message.get("tool_call_id") or "")
    plain = {
        "system": deepseek_recipe.SystemMessage,
        "user": deepseek_recipe.UserMessage,
        "latest_reminder": deepseek_recipe.LatestReminderMessage,
    }
    if role not in plain:
        raise ValueError(f"it has no role {role}")
    return plain[role](content)


def _call(call: Mapping[str, Any]) -> Any:
    import deepseek_recipe

    arguments = call["function"].get("arguments") or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return deepseek_recipe.ToolCall(call.get("id") or "", call["function"]["name"], text)


def _tool(tool: Mapping[str, Any]) -> Any:
    import deepseek_recipe

    function = tool["function"]
    return deepseek_recipe.ToolDefinition(function["name"], function.get("description"), function.get("parameters"))


def _common(first: str, second: str) -> int:
    """Number of characters with which both begin."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
