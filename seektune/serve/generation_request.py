"""The fields that the bodies of all generating requests have."""

from collections.abc import Mapping
from secrets import randbits
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from seektune.generate.answer_grammar import AnswerRules, regex_rules
from seektune.generate.sampling_params import Sampling
from seektune.serve.field_types import RequestModel, Stop
from seektune.serve.structured_fields import FORMATS, ResponseFormat, StructuredOutputs

MAX_STOP_LENGTH = 1000
"""Characters: each token is compared with every prefix of every stop string."""


class StreamOptions(RequestModel):
    """`stream_options`."""

    include_usage: bool = False


class ApiRequest(RequestModel):
    """Fields of all endpoints."""

    chat_fields: ClassVar[Mapping[str, str]] = {}
    """What this endpoint calls fields of chat completions, for errors of the chat that its body becomes."""
    model: str | None = None
    """One of `/v1/models`; default: the first."""
    stream: bool | None = None


class GenerationRequest(ApiRequest):
    """Fields of both completions and chat completions."""

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
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    """vLLM's extension."""
    regex: str | None = None
    """SGLang's extension."""

    @model_validator(mode="after")
    def _only_streams_have_options(self) -> Self:
        if self.wants_usage and not self.stream:
            raise ValueError("stream_options.include_usage needs stream: true")
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
            ValueError: the grammar is invalid, or uses what the library does not support.
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
