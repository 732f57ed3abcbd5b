"""Request bodies of `/v1/messages`, and the chats that they ask for."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from seektune.data.chat_format.encodings import Encoding
from seektune.serve.field_types import MAX_ITEMS, MAX_STOPS, Effort, RequestModel
from seektune.serve.generation_request import ApiRequest
from seektune.serve.messages_api.blocks import InputMessage, Texts
from seektune.serve.schema import ChatRequest


class Thinking(RequestModel):
    """`thinking`: with `adaptive`, too, the response begins with reasoning."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = None
    """A target that the model is not told, as in DeepSeek's API; `max_tokens` is the limit."""
    display: Literal["summarized"] | None = None
    """Reasoning is returned as it is."""


class OutputFormat(RequestModel):
    """`output_config.format`."""

    type: Literal["json_schema"]
    content: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(RequestModel):
    """`output_config`."""

    effort: Effort | None = None
    format: OutputFormat | None = None


class MessagesTool(RequestModel):
    """A tool of the client."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """The tool in the form of chat completions."""
        function = self.model_dump(include={"name", "description", "strict"}, exclude_none=True)
        return {"type": "function", "function": {**function, "parameters": self.input_schema}}


class MessagesToolChoice(RequestModel):
    """`tool_choice`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("type: tool and the field name belong together")
        if self.disable_parallel_tool_use and self.type not in ("any", "tool"):
            raise ValueError("disable_parallel_tool_use: only false is supported, unless type is any or tool")
        return self

    def as_chat(self) -> dict[str, Any]:
        """The fields of chat completions that say the same."""
        named = {"type": "function", "function": {"name": self.name}}
        choice = {"auto": "auto", "any": "required", "tool": named, "none": "none"}[self.type]
        return {"tool_choice": choice, "parallel_tool_calls": not self.disable_parallel_tool_use}


class MessagesRequest(ApiRequest):
    """`/v1/messages`."""

    chat_fields: ClassVar[Mapping[str, str]] = {"stop": "stop_sequences", "response_format": "output_config.format"}
    max_tokens: Annotated[int, Field(ge=1)]
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
    system: Texts | None = None
    stop_sequences: Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    tools: Annotated[list[MessagesTool], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    tool_choice: MessagesToolChoice | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    """There is one."""

    @model_validator(mode="after")
    def _prefills_no_reasoning(self) -> Self:
        if self.prefills and self.thinking is not None and self.thinking.type != "disabled":
            raise ValueError("with thinking, the last message must be the user's: text cannot precede reasoning")
        return self

    @property
    def prefills(self) -> bool:
        """Whether the response continues the last message."""
        return self.messages[-1].role == "assistant"

    def as_chat(self, _encoding: Encoding) -> ChatRequest:
        """The same request to chat completions."""
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": self._messages(),
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "tools": None if self.tools is None else [tool.as_chat() for tool in self.tools],
        }
        fields |= {} if self.tool_choice is None else self.tool_choice.as_chat()
        return ChatRequest.model_validate({**fields, **self._thinking(), **self._output()})

    def _messages(self) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": [text.model_dump() for text in self.system]}] if self.system else []
        messages = [*system, *(each for message in self.messages for each in message.as_chat())]
        if self.prefills:
            messages[-1]["wo_eos"] = True
        return messages

    def _thinking(self) -> dict[str, Any]:
        if self.prefills:
            return {"thinking": {"type": "disabled"}}
        if self.thinking is None:
            return {}
        return {"thinking": {"type": "disabled" if self.thinking.type == "disabled" else "enabled"}}

    def _output(self) -> dict[str, Any]:
        if self.output_config is None:
            return {}
        # unlike `reasoning_effort`, this does not turn reasoning on
        effort = {"chat_template_kwargs": {"reasoning_effort": self.output_config.effort}}
        if self.output_config.format is None:
            return effort
        schema = {"name": "output", "schema": self.output_config.format.content}
        return {**effort, "response_format": {"type": "json_schema", "json_schema": schema}}


class CountTokensRequest(MessagesRequest):
    """`/v1/messages/count_tokens`: a request without what concerns its response."""

    max_tokens: Annotated[int, Field(ge=1)] = 1
