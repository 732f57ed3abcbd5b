"""Copies of weights and memory traffic of quantization-aware training; names and tables are those of `formulas`."""

from seektune.planner.expressions import Formula

ROUNDED = (
    Formula(
        "rounded_block",
        "qat * where(around > 0, 0, dense_bytes + expert_bytes / ep)",
        "the rounded copy of a block's matrices, with what little of it is not rounded",
        "units",
        "column",
    ),
    Formula("rounded_sum", "rounded_block", "of all blocks", "units"),
    Formula("rounded_most", "rounded_block", "of the largest block", "units", "max"),
    Formula(
        "rounding_traffic",
        "qat * where(around > 0, 0, 4 * (14 * dense_learns + where(fp4 > 0, 30, 14) * expert_learns / ep))",
        "bytes that rounding in eager torch reads and writes in a forward pass: 14 fp32 passes for FP8, 30 for FP4",
        "units",
    ),
)
