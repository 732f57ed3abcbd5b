"""The sections of rewards in a recipe, by name; does not import torch."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeInt, model_validator

from seektune.section import OneOf, Positive, Section

VerifierName = Literal[
    "exact_match", "contains", "regex", "json_equal", "json_schema", "tool_call_equal", "last_number", "math"
]


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
    url: str
    """Address, http or https."""
    timeout: Positive = 30.0
    """Seconds without a byte from the server after which a try ends."""
    retries: NonNegativeInt = 3
    """Further tries after a failed one, after pauses of 1, 2, 4, ... seconds, at most 30."""

    @model_validator(mode="after")
    def _is_http(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"url must begin with http:// or https:// and name a host, not {self.url!r:.80}")
        return self


class PluginRewardConfig(RewardConfig):
    """The rewards of an installed package, which offers a function in the entry point group `seektune.rewards`."""

    name: Literal["plugin"]
    """Name of the reward."""
    plugin: str
    """Name of the entry point."""


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
