"""Activations, logits and new gradients of a micro-batch as formulas; names and tables are those of `formulas`."""

from seektune.planner.draft_formulas import DRAFT_BLOCK, DRAFT_LOSS
from seektune.planner.expressions import Formula
from seektune.planner.indexer_formulas import INDEXER

TOKENS = (
    Formula("u", "where(w < 4, 1, 0)"),
    Formula("row", "ceil(length / cp) * cp", "tokens of a row, padded to equal slices"),
    Formula("N", "rows_at_a_time * row / cp", "tokens of a micro-batch here"),
    Formula("P", "N * K", "token-expert pairs"),
    Formula("Q", "where(ep > 1, P * skew, P)", "pairs received here"),
    Formula("el", "E / ep", "experts here"),
)

BLOCK = (
    Formula("exit_read", "N * (8 * u * S * D + 2 * D * w + 12 * S + 4)", "one read of the streams by a head"),
    Formula("chooses", "where(ratio == 4, where(floor(row / 4) > topk, 1, 0), 0)", "", "blocks", "column"),
    Formula("channels", "where(ratio == 4, 2 * C, C)", "", "blocks", "column"),
    Formula("entries", "where(ratio > 0, floor(N / max(ratio, 1)), 0)", "compressed entries here", "blocks", "column"),
    Formula(
        "hyper",
        "2 * N * (S * D * w + 2 * D * w + 4 * (S * (2 + S) + 1 + S + S * S))",
        "both hyper-connections: streams, branch inputs and outputs, router outputs, mixing weights",
        "blocks",
        "column",
    ),
    Formula(
        "attention",
        "N * (D * w + 4 + 2 * R * w + 4 + H * C * w + 4 * H + 2 * C * w + 4 + 6 * r + H * C * w + G * O * w + 8)"
        " + where(cp > 1, rows_at_a_time * (window - 1) * C * w, 0)",
        "normed input; query residual, keys: before and after their norms; queries; angles; output rotated and grouped",
        "blocks",
        "column",
    ),
    Formula(
        "compressed",
        "where(ratio > 0, N * (2 * u * D * 4 + 2 * channels * 4 + 16) + 2 * u * channels * D * 4"
        " + entries * (2 * C * w + 20 + 4 * r) + where(cp > 1, entries * cp * C * w, 0)"
        " + where(chooses > 0, 8 * N * topk, 0), 0)",
        "fp32 inputs and weights of values and gates, and both results; entries; the indexer's top-k",
        "blocks",
        "column",
    ),
    Formula(
        "gate",
        "N * (D * w + 4 + u * D * 4 + 12 * E + K * (16 + 9 * hashed) + 4) + u * E * D * 4",
        "normed input and its fp32 copy; logits, their softplus, scores; the top-k and its weights",
        "blocks",
        "column",
    ),
    Formula(
        "experts",
        "2 * Q * F * w + where(ep > 1, Q * (D * w + 36) + 20 * P, 28 * P) + N * 3 * F * w"
        " + (frozen + qat) * (Q * (F * (w + 8) + 4 * D) + where(ep > 1, qat, 1) * Q * D * w)",
        "each pair's gate and up, its token if it was sent, permutations; the shared expert's gate, up and product;"
        " for frozen or rounded experts also each pair's token, products and output",
        "blocks",
        "column",
    ),
    Formula(
        "rounded_inputs",
        "qat * N * (4 * D + R + G * O + F) * w",
        "FP8 inputs of linear layers, in the dtype of activations",
        "blocks",
        "column",
    ),
    Formula("ahead", "mtp * N * ((2 + S) * D * w + 4 + 4 * S)", "the MTP block's input", "blocks", "column"),
    *INDEXER,
    Formula(
        "saved",
        "where(warmup > 0, 0, hyper + attention + compressed + gate + experts + rounded_inputs + ahead) + indexer",
        "for backward",
        "blocks",
        "column",
    ),
    Formula("input", "N * S * D * w + mtp * N * D * w", "of a block", "blocks", "column"),
    *DRAFT_BLOCK,
    Formula(
        "products",
        "N * (R * w + H * C * w + C * w + D * w + 2 * F * w + D * w + 4 * E + 8 * S * (2 + S))"
        " + where(ratio > 0, 8 * N * channels, 0) + Q * D * w + where(ep > 1, Q * (D * w + 4) + 4 * P * D, 0)"
        " + chooses * N * (Hi * I * w + Hi * w + 16 * I)",
        "what `selective` saves in addition to the input: outputs of linear layers, and tokens that were sent",
        "blocks",
        "column",
    ),
    Formula(
        "kept",
        "where(drafter > 0, drafts * (saved + windows),"
        " where(recompute == 0, saved, where(recompute == 1, input, input + products)))",
        "from forward to backward; nothing of a backbone whose drafter alone is trained",
        "blocks",
        "column",
    ),
    Formula(
        "fresh",
        "where(cut > 0, w * learn_block, (1 - frozen) * (1 - warmup) * el * F * D * (12 + u * w))",
        "new gradients: a block's until FSDP2 reduces them; else its experts', in fp32 before accumulation",
        "blocks",
        "column",
    ),
    Formula(
        "work",
        "where(drafter > drafts, saved + index_scores, max(saved - kept, 0) + index_scores + fresh"
        " + (2 - u) * N * S * D * w + 4 * N * D"
        " + where(ep > 1, 4 * D * (2 * P + Q), 0)"
        " + mtp * (where(recompute > 0, exit_read + (1 - u) * N * S * D * w, 0) + (16 + 4 * u) * N * S * D))",
        "backward of a block: recomputed activations, new gradients, gradients of streams and tokens; forward of a"
        " backbone whose drafter alone is trained",
        "blocks",
        "column",
    ),
)

ACTIVATIONS = (
    *DRAFT_LOSS,
    Formula(
        "whole_gradients",
        "cut * where(micro_batches > 1, 4 * learn_sum, learn_most)",
        "gradients before their reduction: fp32 of all with gradient accumulation, else of one block",
    ),
    Formula("blocks_saved", "count * saved", "for backward of one micro-batch without recompute", "blocks"),
    Formula("blocks_held", "count * flight * kept", "of blocks, micro-batches in flight", "blocks"),
    Formula("block_work", "work", "of the current block", "blocks", "max"),
    Formula(
        "exit_held",
        "head * (8 * N + exit_read * (1 + where(recompute == 0, mtp_runs, 0))"
        " + N * S * D * w * where(mtp_runs > 0, where(recompute == 0, 2 - u, 0), 1 - u))",
        "inputs of the head and the MTP block, and the last streams",
    ),
    Formula(
        "losses",
        "where(drafter > 0, 0, head * (1 + mtp_runs))",
        "of the next token, and of the one after; not of drafts",
    ),
    Formula(
        "loss_kept", "learns_head * V * D * w + N * D * w", "gradients computed with a loss, until its backward ends"
    ),
    Formula(
        "logits_made",
        "4 * V * (min(N, 1024) * (1 + twice) + max(0, min(N - 1024, 1024))) + u * 4 * min(N, 1024) * min(V, 8192)",
        "in chunks of 1,024; a low-precision head is multiplied 8,192 rows at a time, and the products are copied",
    ),
    Formula(
        "loss_moment",
        "where(drafter > 0, read_by_drafts + draft_logits, head * (exit_held + (losses - 1) * loss_kept + 2 * N * D * w"
        " + u * (V * D + min(N, 1024) * D) * 4 + learns_head * V * D * 4 + logits_made))",
        "while a loss is computed",
    ),
    Formula(
        "loss_return",
        "where(drafter > 0, 0, head * (losses * loss_kept + exit_held + learns_head * V * D * (w + 4 * u)))",
        "while its gradients are computed and accumulated",
    ),
    Formula(
        "block_moment",
        "losses * loss_kept + max(block_work, where(drafter > 0, 0, head * (exit_held + 16 * N * S * D)))",
        "backward of blocks; of a backbone whose drafter alone is trained, forward",
    ),
    Formula(
        "shipped",
        "(micro_batches * (arrivals + departures) + leaving) * N * (S + mtp_runs) * D * w",
        "streams between stages: torch's pipeline has a buffer per micro-batch and direction, and keeps sent tensors",
    ),
    Formula(
        "rounded_weights",
        "where(recompute == 0, flight_most * rounded_sum, rounded_most)",
        "rounded matrices from forward to backward: of all blocks, or of the one that is recomputed",
    ),
    Formula("activations", "blocks_held + shipped + block_moment + rounded_weights - losses * loss_kept", "estimated"),
    Formula(
        "logits",
        "losses * loss_kept + max(0, max(loss_moment, loss_return) - block_moment)",
        "of losses: what they hold, and what they need beyond the largest block",
    ),
)
