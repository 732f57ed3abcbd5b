"""What clients may ask, field by field; what is not here is refused by name."""

from collections.abc import Sequence
from secrets import randbits
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from seektune.generate.sampling_params import Sampling

MOST_STOPS = 16
LONGEST_STOP = 1000
"""Characters: each token is compared with every beginning of every stop text."""


class RequestModel(BaseModel):
    """A part of a request; unknown fields are mistakes."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class StreamOptions(RequestModel):
    """`stream_options`."""

    include_usage: bool = False


class GenerationRequest(RequestModel):
    """What both kinds of request have; null is the same as leaving a field out."""

    model: str | None = None
    """One of `/v1/models`; the first if left out."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """Not OpenAI's; vLLM's. -1 and 0 take all."""
    min_p: float | None = None
    """As `top_k`."""
    repetition_penalty: float | None = None
    """As `top_k`."""
    n: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Not looked at."""
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @model_validator(mode="after")
    def _only_streams_have_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options belongs to stream: true")
        return self

    def sampling(self) -> Sampling:
        """How tokens are drawn.

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
        """Texts that an answer ends before.

        Raises:
            ValueError: one is too long.
        """
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if (longest := max(map(len, found), default=0)) > LONGEST_STOP:
            raise ValueError(f"a stop text may have {LONGEST_STOP} characters, not {longest}")
        return tuple(stop for stop in found if stop)

    def first_seed(self) -> int:
        """The seed of the first answer; the others have those after it. A random one if none is named."""
        return randbits(32) if self.seed is None else self.seed % 2**63

    @property
    def answers(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """`/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    """Texts, which begin with BOS and whose control tokens are letters; or ids, taken as they are."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None

    @property
    def alternatives(self) -> int:
        """Likeliest tokens that are named."""
        return self.logprobs or 0

    def prompts(self) -> Sequence[str | list[int]]:
        """Each prompt.

        Raises:
            ValueError: there is none.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise ValueError("prompt is empty")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(Sequence[str | list[int]], self.prompt)


class TextFormat(RequestModel):
    """`response_format`: answers are not constrained."""

    type: Literal["text"]


class TemplateOptions(RequestModel):
    """`chat_template_kwargs`, vLLM's field."""

    thinking: bool | None = None
    reasoning_effort: Literal["high", "max"] | None = None


class ChatRequest(GenerationRequest):
    """`/v1/chat/completions`. Messages are checked by the chat format (`encode_messages`)."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """OpenAI's newer name of `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    response_format: TextFormat | None = None
    reasoning_effort: Literal["none", "high", "max"] | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are one thing; give one")
        return self

    @property
    def alternatives(self) -> int:
        """Likeliest tokens that are named."""
        return self.top_logprobs or 0

    def thinks(self, otherwise: bool) -> bool:
        """Whether the answer begins with reasoning: by the template's option, else by the effort."""
        if self.chat_template_kwargs is not None and self.chat_template_kwargs.thinking is not None:
            return self.chat_template_kwargs.thinking
        return otherwise if self.reasoning_effort is None else self.reasoning_effort != "none"

    def effort(self) -> str | None:
        """The reasoning effort that the prompt tells of."""
        if self.chat_template_kwargs is not None and self.chat_template_kwargs.reasoning_effort is not None:
            return self.chat_template_kwargs.reasoning_effort
        return None if self.reasoning_effort == "none" else self.reasoning_effort

    def conversation(self) -> list[dict[str, Any]]:
        """The messages, with the tools on the system message at their beginning, where the format describes them."""
        if not self.tools or self.tool_choice == "none":
            return self.messages
        first, *others = self.messages
        if first.get("role") == "system":
            told = first.get("tools") or []
            if not isinstance(told, list):
                raise ValueError("messages[0] (system) has tools that are no list")
            return [{**first, "tools": [*told, *self.tools]}, *others]
        return [{"role": "system", "content": "", "tools": self.tools}, *self.messages]
