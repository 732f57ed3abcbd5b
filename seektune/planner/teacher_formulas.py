"""Memory of the teacher of distillation as formulas: frozen weights on the same mesh, its head, its hidden states.

Tables: `teacher` and `teacher_units`, as `tensors` and `units`; empty without a teacher whose checkpoint is here.
"""

from seektune.planner.expressions import Formula
from seektune.planner.weight_formulas import sizes

TEACHER_WEIGHTS = (
    *sizes("teacher", "teacher_"),
    Formula(
        "teacher_packed", "where(whole > 0, 0, where(size == 1, teacher_numel, 0))", "quantized weights", "teacher"
    ),
    Formula("teacher_others", "where(whole > 0, 1, where(size == 1, 0, 1)) * size * teacher_numel", "", "teacher"),
    Formula("teacher_blocks", "2 * quantized_bytes", "what streaming from disk holds", "teacher_units", "max"),
    Formula(
        "teacher_weights",
        "teacher_others + where(teacher_streamed > 0, min(teacher_packed, teacher_blocks), teacher_packed)",
        "as the loader holds them",
    ),
)
TEACHER_STEP = (
    Formula(
        "teacher_head",
        "where(gpus > 1, head * V * teacher_width * w, 0)",
        "its whole head, where the loss is computed, beside its shard",
    ),
    Formula(
        "teacher_states",
        "micro_batches * rows_at_a_time * row * teacher_width * w",
        "the head's inputs of all micro-batches of a step",
    ),
    Formula(
        "teacher",
        "where(cut * offload > 0, 0, teacher_weights) + teacher_head + teacher_states",
        "of objective.teacher, as long as the run",
    ),
)
