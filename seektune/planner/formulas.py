"""Peak memory of a process as formulas: exact for weights and optimizer state, estimated for what a step allocates.

Activations follow what the kernels of `seektune.kernels.eager` save for backward; every term follows a tensor's shape.
Names: N tokens of a micro-batch here, P token-expert pairs, Q pairs received here; D width, S streams, H heads,
C head width, R query rank, G * O inputs of wo_b, r rotated columns, E experts, el of them here, K experts per token,
F expert width, V vocabulary, Hi * I queries of the indexer; w bytes of an element, u 1 if an fp32 copy of a tensor
is a new tensor. Tables: `tensors`, `units` (what FSDP2 gathers together), `blocks`, all of one process.
"""

from seektune.planner.expressions import Formula
from seektune.planner.indexer_formulas import TAUGHT
from seektune.planner.muon_formulas import MUON
from seektune.planner.qat_formulas import ROUNDED

PLACE = (
    Formula("stage_size", "gpus / pp", "processes of a pipeline stage"),
    Formula("fsdp", "dp_shard * cp", "shards of attention and other dense weights"),
    Formula("expert_shards", "max(1, floor(fsdp / ep))", "shards of the experts of one expert-parallel rank"),
    Formula("within", "rank - stage_size * floor(rank / stage_size)", "rank within the stage"),
    Formula("shard", "within - fsdp * floor(within / fsdp)", "index of its shard of the dense weights"),
    Formula("cut", "where(stage_size > 1, 1, 0)", "whether FSDP2 is used"),
    Formula("keeps", "where(pp > 1, 1, where(reshard > 0, 0, 1))", "whether gathered weights stay until the step ends"),
)

STATE = (
    Formula(
        "tall",
        "where(low == 1, rows * lora_scale, rows)",
        "first dim; for some adapter matrices their rank",
        "tensors",
        "column",
    ),
    Formula("broad", "where(low == 2, rest * lora_scale, rest)", "elements of a row", "tensors", "column"),
    Formula(
        "numel",
        "count * where(whole > 0, tall * broad, where(expert > 0, tall / ep * broad / expert_shards,"
        " broad * max(0, min(ceil(tall / fsdp), tall - shard * ceil(tall / fsdp)))))",
        "elements here: FSDP2 splits the first dim into equal shards, the last ones shorter or empty",
        "tensors",
        "column",
    ),
    Formula(
        "parameters",
        "where(whole > 0, 0, values * numel)",
        "parameters in this process's shards; a byte of FP4 counts as two",
        "tensors",
    ),
    Formula("bf16", "where(whole > 0, 0, where(size == 2, 2 * numel, 0))", "weights in bf16", "tensors"),
    Formula("fp32", "where(whole > 0, 0, where(size == 4, 4 * numel, 0))", "weights in fp32", "tensors"),
    Formula(
        "all_quantized", "where(whole > 0, 0, where(size == 1, numel, 0))", "weights as released: FP4, FP8", "tensors"
    ),
    Formula("two_blocks", "2 * quantized_bytes", "what streaming from disk holds", "units", "max"),
    Formula(
        "quantized",
        "where(streamed > 0, min(all_quantized, two_blocks), all_quantized)",
        "weights as released, in memory",
    ),
    Formula("buffers", "where(whole > 0, size * numel, 0)", "routing tables and biases, whole", "tensors"),
    Formula("trained", "where(learns > 0, numel, 0)", "trainable elements", "tensors"),
    Formula(
        "gradients",
        "where(learns > 0, where(cut > 0, size, 4) * numel, 0)",
        "as the optimizer reads them: in the weight's dtype with FSDP2, fp32 without it",
        "tensors",
    ),
    Formula(
        "moments",
        "where(learns > 0, moment_bytes * numel, 0)",
        "two fp32 numbers per trainable element, of Muon's matrices one",
        "tensors",
    ),
    *MUON,
    Formula(
        "master", "where(learns > 0, where(size < 4, 4 * masters * numel, 0), 0)", "fp32 copies of bf16", "tensors"
    ),
    Formula("state", "bf16 + fp32 + quantized + buffers + gradients + moments + master", "held during the whole step"),
)

STEP = (
    Formula(
        "dense_part",
        "where(fsdp > 1, dense_bytes, dense_learn_bytes) + 4 * lora_scale * dense_low",
        "unsharded frozen weights are not gathered",
        "units",
        "column",
    ),
    Formula(
        "expert_part",
        "(where(expert_shards > 1, expert_bytes, expert_learn_bytes) + 4 * lora_scale * expert_low) / ep",
        "",
        "units",
        "column",
    ),
    Formula("learning", "dense_learns + lora_scale * dense_low", "", "units", "column"),
    Formula("experts_learning", "(expert_learns + lora_scale * expert_low) / ep", "", "units", "column"),
    Formula("dense_sum", "dense_part", "whole weights of a process's stages except experts", "units"),
    Formula("expert_sum", "expert_part", "whole weights of its experts", "units"),
    Formula("dense_learn_sum", "learning", "trainable elements", "units"),
    Formula("expert_learn_sum", "experts_learning", "", "units"),
    Formula("unit_sum", "dense_sum + expert_sum"),
    Formula("unit_most", "where(around > 0, 0, dense_part + expert_part)", "", "units", "max"),
    Formula("unit_around", "where(around > 0, dense_part + expert_part, 0)", "", "units"),
    Formula("learn_sum", "dense_learn_sum + expert_learn_sum"),
    Formula("learn_block", "where(around > 0, 0, learning + experts_learning)", "", "units", "max"),
    Formula(
        "learn_most",
        "dense_learn_bytes + expert_learn_bytes / ep + 4 * lora_scale * (dense_low + expert_low / ep)",
        "bytes of the largest",
        "units",
        "max",
    ),
    Formula(
        "read",
        "dense_bytes + expert_bytes / ep + 4 * lora_scale * (dense_low + expert_low / ep)",
        "whole weights that a pass reads, quantized if frozen",
        "units",
    ),
    Formula(
        "dequantized",
        "where(size == 1, values * count * rows * rest / where(expert > 0, ep, 1), 0)",
        "elements to which frozen weights are dequantized in a pass",
        "tensors",
    ),
    Formula("from_disk", "where(streamed > 0, all_quantized, 0)", "bytes that a pass reads from disk"),
    *ROUNDED,
    Formula("gathered", "cut * where(keeps > 0, unit_sum, unit_most + unit_around)", "whole weights, besides shards"),
)

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
    *TAUGHT,
    Formula(
        "saved",
        "where(warmup > 0, 0, hyper + attention + compressed + gate + experts + rounded_inputs + ahead) + taught",
        "for backward",
        "blocks",
        "column",
    ),
    Formula("input", "N * S * D * w + mtp * N * D * w", "of a block", "blocks", "column"),
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
        "where(drafter > 0, 0, where(recompute == 0, saved, where(recompute == 1, input, input + products)))",
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
        "max(saved - kept, 0) + scored + fresh + (2 - u) * N * S * D * w + 4 * N * D"
        " + where(ep > 1, 4 * D * (2 * P + Q), 0)"
        " + mtp * (where(recompute > 0, exit_read + (1 - u) * N * S * D * w, 0) + (16 + 4 * u) * N * S * D)",
        "backward of a block: recomputed activations, new gradients, gradients of streams and tokens",
        "blocks",
        "column",
    ),
)

ACTIVATIONS = (
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
    Formula("losses", "head * (1 + mtp_runs)", "of the next token, and of the one after"),
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
        "head * (exit_held + (losses - 1) * loss_kept + 2 * N * D * w + u * (V * D + min(N, 1024) * D) * 4"
        " + learns_head * V * D * 4 + logits_made)",
        "while a loss is computed",
    ),
    Formula(
        "loss_return",
        "head * (losses * loss_kept + exit_held + learns_head * V * D * (w + 4 * u))",
        "while its gradients are computed and accumulated",
    ),
    Formula(
        "block_moment",
        "losses * loss_kept + max(block_work, head * (exit_held + 16 * N * S * D))",
        "backward of blocks",
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

MARGIN = (
    Formula("made", "gathered + whole_gradients + activations + logits", "allocated and freed in a step"),
    Formula("nccl", "communicators * nccl_bytes", "buffers of process groups"),
    Formula(
        "fsdp_buffers", "cut * where(keeps > 0, 2 * (unit_sum / max(1, units_count)), 2 * unit_most)", "FSDP2's own"
    ),
    Formula("allocator", "allocator_share * made", "fragmentation"),
    Formula("on_host", "cut * where(offload > 0, state - buffers, 0)", "shards in the host's memory"),
    Formula("total", "state - on_host + made + nccl + fsdp_buffers + allocator + context", "of the GPU's memory"),
)

HELD = PLACE + STATE + STEP
"""Formulas that depend on the mesh alone."""
MADE = TOKENS + BLOCK + ACTIVATIONS + MARGIN
"""Formulas that also depend on micro-batches and the pipeline schedule."""
FORMULAS = HELD + MADE
BARS = ("bf16", "fp32", "quantized", "buffers", "gradients", "moments", "master", "gathered", "whole_gradients",
        "activations", "logits", "fsdp_buffers", "nccl", "allocator", "context")  # fmt: skip
"""Parts of `total`, from the bottom of the bar up."""
EXACT = ("bf16", "fp32", "quantized", "buffers", "gradients", "moments", "master")
"""Counted, not estimated."""
