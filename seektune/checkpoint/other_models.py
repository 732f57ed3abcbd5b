"""Tensors by which models of the same family are recognized that are no DeepSeek-V4 text model."""

import re
from collections.abc import Iterable
from pathlib import Path

OTHER_MODELS = (
    (r"\.engram\.", "the Engram memory of V4.1"),
    (
        r"^(vision|aligner)\.|^image_(start|pad|newline|end)$",
        "the image encoder of V4-Flash-Vision-Exp or V4.1",
    ),
    (r"\.gate\.bias_vl$", "the image routing of V4-Flash-Vision-Exp or V4.1"),
)
"""Patterns of names, and what such a tensor belongs to."""
_ANY = re.compile("|".join(pattern for pattern, _ in OTHER_MODELS))


def check_model(names: Iterable[str], folder: Path) -> None:
    """Check that no tensor belongs to another model of the family.

    Raises:
        ValueError: one does; the message names it and the model.
    """
    for name in names:
        if _ANY.search(name):
            what = next(what for pattern, what in OTHER_MODELS if re.search(pattern, name))
            raise ValueError(
                f"{folder} holds {name}, {what}, which is not supported; choose a text checkpoint of DeepSeek-V4, such "
                "as deepseek-ai/DeepSeek-V4-Flash"
            )
