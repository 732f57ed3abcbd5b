"""Memory that the training of indexers adds to a block; names and tables are those of `formulas`."""

from seektune.kernels.eager.index_divergence import ON_GPU
from seektune.planner.expressions import Formula

INDEXER = (
    Formula(
        "indexer",
        "where(ratio == 4, indexers * (N * (2 * u * D * 4 + 16 * I + 16) + 4 * u * I * D * 4"
        " + entries * (2 * I * w + 20 + 4 * r) + where(cp > 1, entries * cp * I * w, 0)"
        " + N * (Hi * I + Hi) * w + entries * cp * I * w), 0)",
        "of trained indexers: fp32 inputs and weights of values and gates, and both results; keys; the gradients of "
        "queries, keys and weights, which are computed with the loss",
        "blocks",
        "column",
    ),
    Formula(
        "index_scores",
        f"where(ratio == 4, indexers * 24 * min({ON_GPU}, N * max(H, Hi)"
        " * where(warmup > 0, row / 4, min(topk, row / 4))), 0)",
        "six fp32 tensors of a chunk's scores",
        "blocks",
        "column",
    ),
)
