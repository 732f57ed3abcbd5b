"""The released variants of DeepSeek-V4: one table of what distinguishes them. Each name is also that of a preset."""

from dataclasses import dataclass
from typing import Any, Literal

from seektune.io.transformers_config import DSPARK_ENCODING
from seektune.model.config import DeepseekV4Config

UNIMPORTANT = {"initializer_range", "bos_token_id", "eos_token_id", "chat_encoding"}
"""Keys that may differ within a variant."""
BASE = "base"
"""The format that distinguishes the base models, whose architecture is that of the preview."""


@dataclass(frozen=True)
class Variant:
    """A release, or several with the same architecture."""

    name: str
    repositories: tuple[str, ...]
    """On the Hub."""
    encoding: Literal["preview", "0731"]
    """The chat encoding of its prompts."""
    note: str
    """What it is, in a few words."""


VARIANTS = (
    Variant("flash", ("deepseek-ai/DeepSeek-V4-Flash",), "preview", "preview of April, one MTP block"),
    Variant(
        "flash-0731",
        ("deepseek-ai/DeepSeek-V4-Flash-0731", "deepseek-ai/DeepSeek-V4-Flash-DSpark"),
        "0731",
        "release of 31 July, three DSpark stages",
    ),
    Variant("flash-base", ("deepseek-ai/DeepSeek-V4-Flash-Base",), "preview", "pretrained, FP8, one MTP block"),
    Variant("pro", ("deepseek-ai/DeepSeek-V4-Pro",), "preview", "preview of April, one MTP block"),
    Variant(
        "pro-0813",
        ("deepseek-ai/DeepSeek-V4-Pro-0813", "deepseek-ai/DeepSeek-V4-Pro-DSpark"),
        "0731",
        "release of 13 August, three DSpark stages",
    ),
    Variant("tiny", (), "preview", "every mechanism at laptop size, one MTP block"),
    Variant("tiny-0731", (), "0731", "every mechanism at laptop size, three DSpark stages"),
    Variant("tiny-bytes", (), "preview", "three layers and bytes as tokens, to pretrain in minutes, one MTP block"),
)
PRESETS = tuple(variant.name for variant in VARIANTS)


def variant_of(config: DeepseekV4Config) -> Variant | None:
    """The variant with this architecture; None if it is no released one. Base models have the preview's."""
    shape = _shape(config)
    return next((each for each in VARIANTS if _shape(DeepseekV4Config.preset(each.name)) == shape), None)


def variant_name(config: DeepseekV4Config, format: str) -> str:
    """The name of a checkpoint's variant, given the format of its tensors; `other` if it is no released one."""
    variant = variant_of(config)
    if variant is None:
        return "other"
    return f"{variant.name}-base" if format == BASE and variant.name in ("flash", "pro") else variant.name


def describe_variant(name: str) -> str:
    """A variant's name, what it is, and where it was released; the name alone of one that is not in the table."""
    variant = next((each for each in VARIANTS if each.name == name), None)
    if variant is None:
        return name
    places = f" ({' or '.join(variant.repositories)})" if variant.repositories else ""
    return f"{name}: {variant.note}{places}"


def encoding_of(config: DeepseekV4Config) -> Literal["preview", "0731"]:
    """The chat encoding of a checkpoint's prompts; that of an unknown architecture follows from its drafter."""
    if config.chat_encoding is not None:
        return config.chat_encoding
    variant = variant_of(config)
    if variant is not None:
        return variant.encoding
    return DSPARK_ENCODING if config.has_dspark else "preview"


def _shape(config: DeepseekV4Config) -> dict[str, Any]:
    return config.model_dump(include=set(DeepseekV4Config.model_fields) - UNIMPORTANT)
