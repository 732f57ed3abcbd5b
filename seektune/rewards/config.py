"""The sections of rewards, by name, and of the tool server in a recipe; does not import torch."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from seektune.io.http_url import check_http_url
from seektune.section import OneOf, Positive, Section

VerifierName = Literal[
    "exact_match", "contains", "regex", "json_equal", "json_schema", "tool_call_equal", "last_number", "math"
]


HttpUrl = Annotated[str, AfterValidator(check_http_url)]
"""An address of a server."""


class RewardConfig(Section):
    """Base of the sections of rewards; the rewards of an answer are added with their weights."""

    name: str
    """Name of the reward."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Factor of the reward."""


class VerifierConfig(RewardConfig):
    """1 if an answer agrees with the row's own, 0 if not."""

    name: Literal["verifier"] = "verifier"
    """Name of the reward."""
    metric: VerifierName
    """How both are compared, as in the task `answers`; `json_schema` takes the row's answer as the schema, and like
    `math` needs the extra `rewards`."""


class ServerRewardConfig(RewardConfig):
    """The rewards of a server: it gets a POST of JSON with `samples` and answers with as many `rewards`."""

    name: Literal["server"]
    """Name of the reward."""
    url: HttpUrl
    """Address, http or https."""
    timeout: Positive = 30.0
    """Maximum seconds of a try."""
    retries: NonNegativeInt = 3
    """Further tries after a failed one, after pauses of 1, 2, 4, ... seconds, at most 30."""


class PluginRewardConfig(RewardConfig):
    """The rewards of an installed package, which offers a function in the entry point group `seektune.rewards`."""

    name: Literal["plugin"]
    """Name of the reward."""
    plugin: str
    """Name of the entry point."""


class ToolServerConfig(Section):
    """A server that runs the tool calls of sampled answers, which continue with the results; off if `url` is null."""

    url: HttpUrl | None = None
    """Address, http or https; it gets a POST of JSON with `tool_calls` and answers with as many `messages`."""
    timeout: Positive = 30.0
    """Maximum seconds of a try."""
    retries: NonNegativeInt = 3
    """Further tries after a failed one, after pauses of 1, 2, 4, ... seconds, at most 30."""
    max_turns: Annotated[int, Field(ge=2)] = 8
    """Maximum responses of an answer; calls of the last are not run."""
    max_result_bytes: PositiveInt = 16384
    """Maximum UTF-8 bytes of a result; longer ones are cut."""
    concurrency: PositiveInt = 8
    """Requests that are sent at a time, each with the calls of one response."""

    @model_validator(mode="after")
    def _is_on(self) -> Self:
        if self.url is None and self != ToolServerConfig.model_construct():
            raise ValueError("tools.url is null but other keys of tools are set; name the server")
        return self


REWARDS: dict[str, type[RewardConfig]] = {
    "verifier": VerifierConfig,
    "server": ServerRewardConfig,
    "plugin": PluginRewardConfig,
}
"""Sections by the value of `reward.name`; the first is the default."""

RewardSection = Annotated[RewardConfig | list[RewardConfig], OneOf("name", REWARDS, several=True)]
"""One reward, or a list of them with weights."""
MeasuredSection = Annotated[RewardConfig | list[RewardConfig], OneOf("name", REWARDS, several=True, least=0)]
"""The same, or an empty list for none."""
