"""Blocks of content in messages of the Messages API."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, Tag, model_validator

from seektune.serve.field_types import MAX_ITEMS, RequestModel, by_type, known_types


class TextBlock(RequestModel):
    """A text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(RequestModel):
    """Reasoning of an earlier response; its signature is not checked."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(RequestModel):
    """A tool call of an earlier response."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


def as_blocks(content: Any) -> Any:
    """Content as blocks; a text is one."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Texts: TypeAlias = Annotated[
    list[Annotated[TextBlock, BeforeValidator(known_types("text"))]],
    Field(max_length=MAX_ITEMS, fail_fast=True),
    BeforeValidator(as_blocks),
]
"""A text, or blocks of text."""


class ToolResultBlock(RequestModel):
    """The result of a tool call."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts = Field(default_factory=list)
    is_error: bool | None = None
    """The chat format has no place for it; the content says what failed."""


Block: TypeAlias = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")],
    by_type(),
    BeforeValidator(known_types("text", "thinking", "tool_use", "tool_result")),
]
Content: TypeAlias = Annotated[list[Block], Field(max_length=MAX_ITEMS, fail_fast=True), BeforeValidator(as_blocks)]


ROLE_BLOCKS = {"user": ("text", "tool_result"), "assistant": ("text", "thinking", "tool_use")}


class InputMessage(RequestModel):
    """A message of the conversation."""

    role: Literal["user", "assistant"]
    content: Content

    @model_validator(mode="after")
    def _has_blocks_of_its_role(self) -> Self:
        for block in self.content:
            if block.type not in ROLE_BLOCKS[self.role]:
                raise ValueError(f"a message of the {self.role} cannot have a block of type {block.type}")
        return self

    def as_chat(self) -> list[dict[str, Any]]:
        """The message in the form of chat completions; results of tools are messages of their own."""
        return self._assistant() if self.role == "assistant" else self._user()

    def _user(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        for block in self.content:
            match block:
                case TextBlock():
                    messages.append({"role": "user", "content": block.text})
                case ToolResultBlock():
                    texts = [text.model_dump() for text in block.content]
                    messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": texts})
        return messages

    def _assistant(self) -> list[dict[str, Any]]:
        texts: list[str] = []
        reasoning: list[str] = []
        calls: list[dict[str, Any]] = []
        for block in self.content:
            match block:
                case TextBlock():
                    texts.append(block.text)
                case ThinkingBlock():
                    reasoning.append(block.thinking)
                case ToolUseBlock():
                    function = {"name": block.name, "arguments": block.input}
                    calls.append({"id": block.id, "type": "function", "function": function})
        message: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(texts)}
        message |= {"reasoning_content": "\n\n".join(reasoning)} if reasoning else {}
        return [message | ({"tool_calls": calls} if calls else {})]
