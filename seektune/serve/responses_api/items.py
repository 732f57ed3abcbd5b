"""Input items of the Responses API, and the messages of a chat that they stand for."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeGuard

from pydantic import BeforeValidator, Field, Tag, model_validator

from seektune.data.chat_format.encodings import Encoding
from seektune.data.chat_format.message import read_arguments
from seektune.serve.field_types import MAX_ITEMS, RequestModel, by_type, known_types


class ReturnedItem(RequestModel):
    """Fields of items that an earlier response may have had; they change nothing."""

    id: str | None = None
    status: str | None = None


class TextPart(RequestModel):
    """A text of a message or of a tool's output."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


def _as_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


Parts: TypeAlias = Annotated[
    list[Annotated[TextPart, BeforeValidator(known_types("input_text", "output_text", "text"))]],
    Field(max_length=MAX_ITEMS, fail_fast=True),
    BeforeValidator(_as_parts),
]
"""A text, or parts that are texts."""


class MessageItem(ReturnedItem):
    """A message."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    phase: str | None = None

    def texts(self) -> list[dict[str, str]]:
        """The content in the form of chat completions."""
        return [{"type": "text", "text": part.text} for part in self.content]


class ReasoningText(RequestModel):
    """A part of reasoning, or of its summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(ReturnedItem):
    """Reasoning of an earlier response."""

    type: Literal["reasoning"]
    summary: Annotated[list[ReasoningText], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    content: Annotated[list[ReasoningText], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None

    def text(self) -> str:
        """The reasoning, or its summary if that is all there is."""
        return "\n\n".join(part.text for part in self.content or self.summary or ())


class FunctionCallItem(ReturnedItem):
    """A tool call of an earlier response."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str

    @model_validator(mode="after")
    def _has_arguments(self) -> Self:
        read_arguments(self.name, self.arguments)
        return self

    def as_chat(self) -> dict[str, Any]:
        """The call in the form of chat completions."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class FunctionOutputItem(ReturnedItem):
    """The result of a tool call."""

    type: Literal["function_call_output"]
    call_id: str
    output: Parts

    def as_chat(self) -> dict[str, Any]:
        """The result as a message of chat completions."""
        texts = [{"type": "text", "text": part.text} for part in self.output]
        return {"role": "tool", "tool_call_id": self.call_id, "content": texts}


Item: TypeAlias = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionOutputItem, Tag("<function_call_output>")],
    by_type(),
    BeforeValidator(known_types("message", "reasoning", "function_call", "function_call_output", default="message")),
]


def as_items(value: Any) -> Any:
    """Input as items; a text is a message of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def chat_messages(items: Sequence[Item], instructions: str | None, encoding: Encoding) -> list[dict[str, Any]]:
    """The messages of chat completions; what an assistant wrote in a row, with reasoning and calls, is one message.

    As in DeepSeek's own conversion, texts of the system and of developers stay in their places where the encoding marks
    them; where it does not, those of the system begin the prompt, and developers speak as the user.
    """
    system = [instructions] if instructions else []
    if not encoding.system:
        system += [text.text for item in items if _is_by(item, "system") for text in item.content]
        items = [item for item in items if not _is_by(item, "system")]
    opening = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    return [*opening, *_joined(items, "system" if encoding.system else "user")]


def _is_by(item: Item, role: str) -> TypeGuard[MessageItem]:
    return isinstance(item, MessageItem) and item.role == role


def _joined(items: Sequence[Item], developer: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []

    def answer() -> dict[str, Any]:
        """The assistant's message that is being put together."""
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": []})
        return messages[-1]

    for item in items:
        match item:
            case MessageItem(role="assistant"):
                answer()["content"] += item.texts()
            case MessageItem():
                role = developer if item.role == "developer" else item.role
                messages.append({"role": role, "content": item.texts()})
            case ReasoningItem():
                message = answer()
                parts = [message.get("reasoning_content"), item.text()]
                message["reasoning_content"] = "\n\n".join(part for part in parts if part)
            case FunctionCallItem():
                answer().setdefault("tool_calls", []).append(item.as_chat())
            case FunctionOutputItem():
                messages.append(item.as_chat())
    return messages
