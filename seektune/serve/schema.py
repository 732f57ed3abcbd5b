"""Request bodies of the API: what asks for nothing is accepted, what cannot be done is refused by name."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, model_validator

from seektune.serve.field_types import EFFORTS, Effort, EffortOrNone, Objects, Prompt, RequestModel
from seektune.serve.generation_request import GenerationRequest
from seektune.serve.structured_fields import NamedTool, ToolChoice


class CompletionRequest(GenerationRequest):
    """`/v1/completions`."""

    prompt: Prompt
    """Text, which gets a BOS and whose control tokens are plain characters; or ids, used unchanged."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """0 is possible with `echo`: nothing is generated then."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    """Whether the response begins with the prompt, and its log-probabilities with those of the prompt's tokens."""

    @model_validator(mode="after")
    def _generates_or_echoes(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 needs echo: true")
        return self

    @property
    def alternatives(self) -> int:
        """Number of most likely tokens to report."""
        return self.logprobs or 0

    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts.

        Raises:
            ValueError: the list is empty.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise ValueError("prompt is empty")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(Sequence[str | list[int]], self.prompt)


class TemplateOptions(RequestModel):
    """`chat_template_kwargs`, vLLM's field."""

    thinking: bool | None = None
    reasoning_effort: Effort | None = None


class ThinkingSwitch(RequestModel):
    """`thinking`, DeepSeek's field."""

    type: Literal["enabled", "disabled"]


class ChatRequest(GenerationRequest):
    """`/v1/chat/completions`. Messages are checked by the chat format (`render_chat_prompt`)."""

    messages: Objects
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """OpenAI's newer name of `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Objects | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: EffortOrNone | None = None
    thinking: ThinkingSwitch | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are the same setting; set only one")
        if self.parallel_tool_calls is False and not self.requires_call:
            raise ValueError("parallel_tool_calls: only true is supported, unless tool_choice requires a call")
        return self

    @property
    def alternatives(self) -> int:
        """Number of most likely tokens to report."""
        return self.top_logprobs or 0

    def thinks(self, default: bool) -> bool:
        """Whether the response begins with reasoning: by the template's option, else by the switch or the effort."""
        if self.chat_template_kwargs is not None and self.chat_template_kwargs.thinking is not None:
            return self.chat_template_kwargs.thinking
        if self.thinking is not None:
            return self.thinking.type == "enabled"
        return default if self.reasoning_effort is None else self.reasoning_effort != "none"

    def effort(self) -> str | None:
        """The reasoning effort that is asked for, as a tier of DeepSeek's API; None = the default."""
        options = self.chat_template_kwargs
        asked = options.reasoning_effort if options is not None and options.reasoning_effort else self.reasoning_effort
        return None if asked is None or asked == "none" else EFFORTS[asked]

    def offered_tools(self) -> list[dict[Any, Any]]:
        """The tools that the prompt describes."""
        return [] if self.tools is None or self.tool_choice == "none" else self.tools

    @property
    def requires_call(self) -> bool:
        """Whether the answer has to be a tool call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def named_tool(self) -> str | None:
        """The tool that the answer has to call, if it is named."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
