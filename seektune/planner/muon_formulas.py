"""Muon's work and messages of a step as formulas; names and tables are those of `formulas`."""

from seektune.planner.expressions import Formula

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
)
