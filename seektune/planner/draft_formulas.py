"""What drafts take in training besides weights and gradients, as formulas; names and tables are those of `formulas`.

The drafts are rows of the table `blocks` with `drafts` 1, whose N is the tokens of the drafts that exist at a time.
"""

from seektune.planner.expressions import Formula

DRAFT_BLOCK = (
    Formula(
        "windows",
        "drafts * N * 4 * ((1 + u) * H * (window + block + 1) + (window + block) / max(block, 1) * C + u * H * C)",
        "attention of the drafts in fp32: weights, keys of their windows, queries",
        "blocks",
        "column",
    ),
)
DRAFT_LOSS = (
    Formula(
        "read_by_drafts",
        "drafter * N * w * ((targets + 3) * D + 3 * draft_stages * C)",
        "the backbone's means and hidden states of a micro-batch; what the stages remember of them",
    ),
    Formula(
        "draft_logits",
        "drafter * (24 * drafted * V + u * 4 * V * (D + markov))",
        "six times those of the drafts that exist at a time, in fp32; fp32 copies of both heads",
    ),
)
DRAFT_REDUCTION = Formula(
    "draft_reduction",
    "drafter * 4 * (learn_sum + where(fsdp > 1, dense_learn_sum / fsdp, 0)"
    " + where(expert_shards > 1, expert_learn_sum / expert_shards, 0))",
    "fp32 copies of all gradients of the stages, which FSDP2 reduces together, and what it makes of them",
)
