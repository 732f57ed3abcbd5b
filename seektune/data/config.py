"""What a recipe says about its data: which dataset, and how rows become batches."""

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt, ValidationInfo, field_validator

from seektune.section import Section


class DataConfig(Section):
    """Where the examples come from."""

    dataset: Literal["hellaswag"] = "hellaswag"
    """Name of the dataset."""
    path: Path | None = None
    """Folder with train and validation as .parquet or .jsonl in the Hub's schema; none = fetched and cached."""
    overlong: Literal["error", "drop"] = "error"
    """What happens to an example longer than `batch.length`: training refuses to start, or it is left out."""


class BatchConfig(Section):
    """How many tokens meet in one optimizer step."""

    global_size: PositiveInt
    """Rows per optimizer step."""
    micro_size: PositiveInt = 1
    """Rows per forward; must divide `global_size`."""
    length: PositiveInt
    """Most tokens of a row."""
    pack: bool = False
    """Whether a row of `length` tokens holds several examples (each sees only itself) or one."""

    @field_validator("micro_size")
    @classmethod
    def _divides(cls, micro_size: int, info: ValidationInfo) -> int:
        global_size = info.data.get("global_size", micro_size)
        if global_size % micro_size:
            raise ValueError(f"micro_size {micro_size} must divide global_size {global_size}")
        return micro_size
