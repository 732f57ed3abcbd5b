"""Request bodies of the API: what asks for nothing is accepted, what cannot be done is refused by name."""

from collections.abc import Sequence
from secrets import randbits
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, model_validator

from seektune.generate.answer_grammar import AnswerRules, regex_rules
from seektune.generate.sampling_params import Sampling
from seektune.serve.field_types import EFFORTS, Effort, Objects, Prompt, RequestModel, Stop
from seektune.serve.structured_fields import FORMATS, NamedTool, ResponseFormat, StructuredOutputs, ToolChoice

MAX_STOP_LENGTH = 1000
"""Characters: each token is compared with every prefix of every stop string."""


class StreamOptions(RequestModel):
    """`stream_options`."""

    include_usage: bool = False


class GenerationRequest(RequestModel):
    """Fields of both endpoints."""

    model: str | None = None
    """One of `/v1/models`; default: the first."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """vLLM's extension; -1 and 0 mean all."""
    min_p: float | None = None
    """vLLM's extension."""
    repetition_penalty: float | None = None
    """vLLM's extension."""
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    """vLLM's extension."""
    regex: str | None = None
    """SGLang's extension."""

    @model_validator(mode="after")
    def _only_streams_have_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @model_validator(mode="after")
    def _has_one_format(self) -> Self:
        if len(self._formats()) > 1:
            raise ValueError(f"{' and '.join(self._formats())} exclude each other; give one")
        return self

    @property
    def format_field(self) -> str | None:
        """The field that asks for an answer of some form."""
        return next(iter(self._formats()), None)

    def _formats(self) -> list[str]:
        is_text = self.response_format is None or self.response_format.type == "text"
        given = (not is_text, self.structured_outputs is not None, self.regex is not None)
        return [name for name, is_given in zip(FORMATS, given, strict=True) if is_given]

    def answer_rules(self) -> AnswerRules:
        """What an answer has to follow, for a request with a `format_field`.

        Raises:
            ValueError: there is no such grammar.
        """
        if self.structured_outputs is not None:
            return self.structured_outputs.rules()
        if self.regex is not None:
            return regex_rules(self.regex)
        assert self.response_format is not None, "a field asks for a format"
        return self.response_format.rules()

    def sampling(self) -> Sampling:
        """The sampling parameters.

        Raises:
            ValueError: a number is outside its range.
        """
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=0 if self.top_k is None or self.top_k == -1 else self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
        )

    def stops(self) -> tuple[str, ...]:
        """The stop strings.

        Raises:
            ValueError: one is too long.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if (longest := max(map(len, stops), default=0)) > MAX_STOP_LENGTH:
            raise ValueError(f"a stop string may have at most {MAX_STOP_LENGTH} characters, not {longest}")
        return tuple(stop for stop in stops if stop)

    def first_seed(self) -> int:
        """Seed of the first completion, random by default; each further completion adds 1."""
        return randbits(32) if self.seed is None else self.seed % 2**63

    @property
    def samples(self) -> int:
        """Completions of each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


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
    reasoning_effort: Literal["none"] | Effort | None = None
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
