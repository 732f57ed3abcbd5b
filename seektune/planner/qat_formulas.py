"""Copies of weights and memory traffic of quantization-aware training; names and tables are those of `formulas`."""

from seektune.planner.expressions import Formula

PASSES = {"fp8": 16.5, "fp4": 29.6}
"""Fp32 passes over a bf16 weight that `fake_quantize_weight` takes by its operations, as a test counts them."""
DENSE = f"{PASSES['fp8']} * dense_learns"
EXPERTS = f"where(fp4 > 0, {PASSES['fp4']}, {PASSES['fp8']}) * expert_learns / ep"
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
        f"qat * where(around > 0, 0, 4 * ({DENSE} + {EXPERTS}))",
        f"bytes that rounding in eager torch reads and writes in a forward pass: {PASSES['fp8']} fp32 passes for FP8, "
        f"{PASSES['fp4']} for FP4",
        "units",
    ),
)
