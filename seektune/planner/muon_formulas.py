"""Muon's work, messages and memory of a step as formulas; names and tables are those of `formulas`."""

from seektune.planner.expressions import Formula

HERE = 7
"""Most copies of a round's matrices while it is computed: directions, joined, before and after an iteration, its two
square products, results of the round before."""
SENT = 6
"""Those that exchange adds: pieces sent and received for the round before, this one and the next."""
HERE_LEAST = 3
SENT_LEAST = 1
"""Without another round, and of matrices that are far from square."""

MUON = (
    Formula(
        "orthogonal_sum",
        "where(learns > 0, count * matrix_flops / stage_size, 0)",
        "operations of Muon's matrix products, shared evenly by the processes of a stage",
        "tensors",
    ),
    Formula(
        "orthogonal_most",
        "where(learns > 0, where(expert > 0, matrix_flops / rows, matrix_flops), 0)",
        "of the largest matrix, which one process orthogonalises",
        "tensors",
        "max",
    ),
    Formula("orthogonal_flops", "max(orthogonal_sum, orthogonal_most)", "of one process"),
    Formula(
        "exchanged",
        "where(learns * matrix_flops > 0, where(expert > 0,"
        " where(rows / ep > expert_shards * floor(rows / ep / expert_shards), ep * expert_shards, 0),"
        " where(fsdp > 1, fsdp, 0)) / stage_size * size * numel, 0)",
        "bytes of matrices that this process sends to be orthogonalised, and as many that come back, for its replica",
        "tensors",
    ),
    Formula(
        "copied",
        "where(learns * matrix_flops > 0, where(stage_size > where(expert > 0, ep * expert_shards, fsdp),"
        " size * numel, 0), 0)",
        "bytes of orthogonalised matrices that replicas share",
        "tensors",
    ),
    Formula(
        "orthogonal_unit",
        "where(learns * matrix_flops > 0, broad * where(expert > 0, 1, tall), 0)",
        "elements of the largest matrix",
        "tensors",
        "max",
    ),
    Formula(
        "orthogonal_elements",
        "where(learns * matrix_flops > 0, count * tall * broad / stage_size, 0)",
        "of the matrices that one process orthogonalises",
        "tensors",
    ),
    Formula(
        "orthogonal_size",
        "where(learns * matrix_flops > 0, size, 0)",
        "bytes of an element in the iteration",
        "tensors",
        "max",
    ),
    Formula(
        "orthogonal_round",
        "orthogonal_size * max(orthogonal_unit, min(round_elements, orthogonal_elements))",
        "bytes of the whole matrices of a round",
    ),
)
WORK = (
    Formula(
        "orthogonal_work",
        f"orthogonal_round * where(twice > 0, {HERE} + where(exchanged > 0, {SENT}, 0),"
        f" {HERE_LEAST} + where(exchanged > 0, {SENT_LEAST}, 0))",
        "copies of a round's matrices while they are sent and orthogonalised",
    ),
    Formula(
        "optimizer_work",
        "max(0, orthogonal_work - made)",
        "of these, what does not fit where forward and backward had theirs",
    ),
)
"""Formulas that follow what a step makes: the optimizer runs when that is free again."""
