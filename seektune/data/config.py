"""The section `batch` of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from seektune.section import Section

OverlongChoice = Literal["error", "drop", "cut", "split"]
BECOMES = {"drop": "left out", "cut": "cut", "split": "split"}
"""What becomes of an example that is longer than a row, by `batch.overlong`, in messages."""


class BatchConfig(Section):
    """Batch size and row length."""

    global_size: Annotated[int, Field(gt=0, le=10**6)]
    """Rows per optimizer step."""
    micro_size: PositiveInt = 1
    """Rows per forward; must divide `global_size`."""
    length: PositiveInt
    """Maximum tokens of a row."""
    pack: bool = False
    """Whether a row of `length` tokens holds several examples (each sees only itself) or one."""
    overlong: OverlongChoice = "error"
    """What happens to an example longer than `length`: training refuses to start, the example is left out, it is cut
    after `length` tokens, or it is split into examples of at most `length` tokens."""

    @field_validator("micro_size")
    @classmethod
    def _divides(cls, micro_size: int, info: ValidationInfo) -> int:
        global_size = info.data.get("global_size", micro_size)
        if global_size % micro_size:
            raise ValueError(f"micro_size {micro_size} must divide global_size {global_size}")
        return micro_size
