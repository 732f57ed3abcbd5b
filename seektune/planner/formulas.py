"""Peak memory of a process as formulas: exact for weights and optimizer state, estimated for what a step allocates.

Activations follow what the kernels of `seektune.kernels.eager` save for backward; every term follows a tensor's shape.
Names: N tokens of a micro-batch here, P token-expert pairs, Q pairs received here; D width, S streams, H heads,
C head width, R query rank, G * O inputs of wo_b, r rotated columns, E experts, el of them here, K experts per token,
F expert width, V vocabulary, Hi * I queries of the indexer; w bytes of an element, u 1 if an fp32 copy of a tensor
is a new tensor. Tables: `tensors`, `units` (what FSDP2 gathers together), `blocks`, all of one process.
"""

from seektune.planner.activation_formulas import ACTIVATIONS, BLOCK, TOKENS
from seektune.planner.draft_formulas import DRAFT_REDUCTION
from seektune.planner.expressions import Formula
from seektune.planner.muon_formulas import WORK
from seektune.planner.rollout_formulas import ROLLOUT
from seektune.planner.teacher_formulas import TEACHER_STEP, TEACHER_WEIGHTS
from seektune.planner.weight_formulas import PLACE, STATE, STEP

MARGIN = (
    Formula("made", "gathered + whole_gradients + activations + logits", "allocated and freed in a step"),
    *WORK,
    *ROLLOUT,
    *TEACHER_STEP,
    Formula("nccl", "communicators * nccl_bytes", "buffers of process groups"),
    DRAFT_REDUCTION,
    Formula(
        "fsdp_buffers",
        "cut * max(where(keeps > 0, 2 * (unit_sum / max(1, units_count)), 2 * unit_most),"
        " draft_reduction - activations - logits)",
        "FSDP2's own; those that reduce DSpark stages are there when activations are gone",
    ),
    Formula("allocator", "allocator_share * (made + optimizer_work + rollout_work)", "fragmentation"),
    Formula("on_host", "cut * where(offload > 0, state - buffers, 0)", "shards in the host's memory"),
    Formula(
        "total",
        "state - on_host + teacher + made + optimizer_work + rollout_work + nccl + fsdp_buffers + allocator + context",
        "of the GPU's memory",
    ),
)

HELD = PLACE + STATE + STEP + TEACHER_WEIGHTS
"""Formulas that depend on the mesh alone."""
MADE = TOKENS + BLOCK + ACTIVATIONS + MARGIN
"""Formulas that also depend on micro-batches and the pipeline schedule."""
FORMULAS = HELD + MADE
BARS = ("bf16", "fp32", "quantized", "buffers", "gradients", "moments", "master", "teacher", "gathered",
        "whole_gradients", "activations", "logits", "optimizer_work", "rollout_work", "fsdp_buffers", "nccl",
        "allocator", "context")  # fmt: skip
"""Parts of `total`, from the bottom of the bar up."""
EXACT = ("bf16", "fp32", "quantized", "buffers", "gradients", "moments", "master")
"""Counted, not estimated."""
