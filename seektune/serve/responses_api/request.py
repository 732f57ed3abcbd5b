"""Request bodies of `/v1/responses`, and the chats that they ask for."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from seektune.data.chat_format.encodings import Encoding
from seektune.data.chat_format.tokens import ANSWERED
from seektune.io.strict_json import is_nested_deeper
from seektune.io.text import check_unicode
from seektune.serve.field_types import MAX_ITEMS, EffortOrNone, RequestModel, known_types
from seektune.serve.generation_request import ApiRequest
from seektune.serve.responses_api.items import FunctionOutputItem, Item, MessageItem, as_items, chat_messages
from seektune.serve.schema import ChatRequest


class Reasoning(RequestModel):
    """`reasoning`; responses have the reasoning itself, whatever `summary` says."""

    effort: EffortOrNone | None = None
    summary: Literal["auto"] | None = None


class TextFormat(RequestModel):
    """`text.format`."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    content: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _has_the_schema_that_it_names(self) -> Self:
        if (self.type == "json_schema") != (self.content is not None):
            raise ValueError("type: json_schema and the field schema belong together")
        return self

    def as_chat(self) -> dict[str, Any]:
        """`response_format` of chat completions."""
        return {"type": self.type} | ({} if self.content is None else {"json_schema": {"schema": self.content}})


class TextOptions(RequestModel):
    """`text`."""

    format: TextFormat | None = None


class FunctionTool(RequestModel):
    """A function of the client."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """The tool in the form of chat completions."""
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class FunctionChoice(RequestModel):
    """`tool_choice` that names a function."""

    type: Literal["function"]
    name: str


def _form(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<named>" if isinstance(value, dict | FunctionChoice) else None


ChoiceOfTool: TypeAlias = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("<text>")] | Annotated[FunctionChoice, Tag("<named>")],
    Discriminator(
        _form, custom_error_type="form", custom_error_message="must be auto, none, required or a function's name"
    ),
]


REPEATED = ("instructions", "metadata", "text", "tools", "tool_choice")
"""Fields that a response repeats and that may hold any JSON or text."""

MOST_NESTED = 200
"""Levels of these fields; Python writes fewer than 1000, which those around it share."""


class ResponseStreamOptions(RequestModel):
    """`stream_options`, of which none has an effect here."""


class ResponsesRequest(ApiRequest):
    """`/v1/responses`. Nothing is stored: each request has the whole conversation as its input."""

    chat_fields: ClassVar[Mapping[str, str]] = {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "response_format": "text.format",
    }
    input: Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True), BeforeValidator(as_items)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    tools: (
        Annotated[
            list[Annotated[FunctionTool, BeforeValidator(known_types("function"))]],
            Field(max_length=MAX_ITEMS, fail_fast=True),
        ]
        | None
    ) = None
    tool_choice: ChoiceOfTool | None = None
    parallel_tool_calls: bool | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    """Reasoning is not encrypted: the items of a response have it as text, and a later input may give it back."""
    metadata: dict[str, Any] | None = None
    """Returned with the response."""
    stream_options: ResponseStreamOptions | None = None

    @model_validator(mode="after")
    def _asks_for_an_answer(self) -> Self:
        last = self.input[-1]
        if (isinstance(last, MessageItem) and last.role in ANSWERED) or isinstance(last, FunctionOutputItem):
            return self
        raise ValueError("input: the last item must be a message of the user or a developer, or a function_call_output")

    @model_validator(mode="after")
    def _can_be_repeated(self) -> Self:
        for field in REPEATED:
            try:
                values = self.model_dump(include={field})
                if is_nested_deeper(values, MOST_NESTED):
                    raise ValueError(f"at most {MOST_NESTED} levels of objects and arrays are repeated")
                check_unicode(json.dumps(values, ensure_ascii=False, allow_nan=False))
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None
        return self

    def as_chat(self, encoding: Encoding) -> ChatRequest:
        """The same request to chat completions."""
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": chat_messages(self.input, self.instructions, encoding),
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
            "tools": None if self.tools is None else [tool.as_chat() for tool in self.tools],
            "parallel_tool_calls": self.parallel_tool_calls,
            "tool_choice": self.tool_choice,
        }
        if isinstance(self.tool_choice, FunctionChoice):
            fields["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}}
        if self.text is not None and self.text.format is not None:
            fields["response_format"] = self.text.format.as_chat()
        return ChatRequest.model_validate(fields)

    def settings(self) -> dict[str, Any]:
        """The settings that a response repeats."""
        text = self.text and self.text.model_dump(exclude_none=True, by_alias=True)
        named = self.tool_choice
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": self.reasoning and self.reasoning.effort, "summary": None},
            "store": False,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": {"type": "text"}, **(text or {})},
            "tool_choice": named.model_dump() if isinstance(named, FunctionChoice) else named or "auto",
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
        }
