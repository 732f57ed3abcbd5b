"""Architectures of the same family that are no DeepSeek-V4 text model, each with the sentence that says so."""

from collections.abc import Callable, Mapping
from typing import Any

Recognize = Callable[[Mapping[str, Any]], bool]

UNSUPPORTED: tuple[tuple[Recognize, str], ...] = (
    (
        lambda config: str(config.get("model_type")).startswith("deepseek_v41"),
        "model_type is deepseek_v41: V4.1 is another architecture (shared compressors, Engram memory, no hash layers), "
        "so its weights cannot be loaded as V4; choose a deepseek_v4 checkpoint",
    ),
    (
        lambda config: any(key.startswith("vision_") for key in config),
        "the config describes a vision model (DeepSeek-V4-Flash-Vision-Exp): its vision tower, image tokens and image "
        "biases of the gates are not supported; choose a text checkpoint such as DeepSeek-V4-Flash-0731",
    ),
)
"""How a config.json is recognized, and what is said about it."""


def unsupported(config: Mapping[str, Any]) -> str | None:
    """The end of a sentence about a config.json of an architecture that is recognized but not supported, or None."""
    return next((sentence for recognize, sentence in UNSUPPORTED if recognize(config)), None)
