"""What a process holds in its fullest moment, as formulas: exact for what stays, estimated for what a step makes.

Activations follow what the kernels of `seektune.kernels.eager` save for backward; every term names its tensor's shape.
Names: N tokens of a micro-batch here, P token-expert pairs, Q pairs that arrive here; D width, S streams, H heads,
C head width, R query rank, G * O inputs of wo_b, r rotated columns, E experts, el of them here, K experts per token,
F expert width, V vocabulary, Hi * I queries of the indexer; w bytes of a number, u 1 where an fp32 copy of a tensor
is another tensor. Tables: `tensors`, `units` (what FSDP2 gathers together), `blocks`, all of one process.
"""

from seektune.planner.expressions import Formula

PLACE = (
    Formula("stage_size", "gpus / pp", "processes of a pipeline stage"),
    Formula("fsdp", "dp_shard * cp", "pieces of attention and shared parts"),
    Formula("pieces", "max(1, floor(fsdp / ep))", "pieces of the experts of one place on the expert axis"),
    Formula("within", "rank - stage_size * floor(rank / stage_size)", "place of the process in its stage"),
    Formula("piece", "within - fsdp * floor(within / fsdp)", "which piece of the dense parts it has"),
    Formula("cut", "where(stage_size > 1, 1, 0)", "whether FSDP2 is at work"),
    Formula("keeps", "where(pp > 1, 1, where(reshard > 0, 0, 1))", "whether gathered weights stay until the step ends"),
)

STATE = (
    Formula(
        "tall",
        "where(low == 1, rows * lora_scale, rows)",
        "first dim; an adapter's may be its rank",
        "tensors",
        "column",
    ),
    Formula("broad", "where(low == 2, rest * lora_scale, rest)", "elements of a row", "tensors", "column"),
    Formula(
        "numel",
        "count * where(whole > 0, tall * broad, where(expert > 0, tall / ep * broad / pieces,"
        " broad * max(0, min(ceil(tall / fsdp), tall - piece * ceil(tall / fsdp)))))",
        "elements here: FSDP2 cuts the first dim into equal pieces, the last ones shorter or empty",
        "tensors",
        "column",
    ),
    Formula(
        "parameters",
        "where(whole > 0, 0, values * numel)",
        "weights, each this process's piece; a byte of FP4 is two",
        "tensors",
    ),
    Formula("bf16", "where(whole > 0, 0, where(size == 2, 2 * numel, 0))", "weights in bf16", "tensors"),
    Formula("fp32", "where(whole > 0, 0, where(size == 4, 4 * numel, 0))", "weights in fp32", "tensors"),
    Formula(
        "all_packed", "where(whole > 0, 0, where(size == 1, numel, 0))", "weights as released: FP4, FP8", "tensors"
    ),
    Formula("two_blocks", "2 * packed_bytes", "as much as streaming holds", "units", "max"),
    Formula("packed", "where(streamed > 0, min(all_packed, two_blocks), all_packed)", "weights as released, in memory"),
    Formula("buffers", "where(whole > 0, size * numel, 0)", "routing tables and biases, whole", "tensors"),
    Formula("trained", "where(learns > 0, numel, 0)", "weights that train", "tensors"),
    Formula(
        "gradients",
        "where(learns > 0, where(cut > 0, size, 4) * numel, 0)",
        "as the optimizer reads them: rounded to the weight's dtype by FSDP2, fp32 without it",
        "tensors",
    ),
    Formula("moments", "8 * trained", "two fp32 moments of each weight that trains"),
    Formula(
        "master", "where(learns > 0, where(size < 4, 4 * masters * numel, 0), 0)", "fp32 copies of bf16", "tensors"
    ),
    Formula("state", "bf16 + fp32 + packed + buffers + gradients + moments + master", "always held"),
)

STEP = (
    Formula(
        "dense_part",
        "where(fsdp > 1, dense_bytes, dense_learn_bytes) + 4 * lora_scale * dense_low",
        "frozen weights that nobody cuts are not gathered",
        "units",
        "column",
    ),
    Formula(
        "expert_part",
        "(where(pieces > 1, expert_bytes, expert_learn_bytes) + 4 * lora_scale * expert_low) / ep",
        "",
        "units",
        "column",
    ),
    Formula("learning", "dense_learns + lora_scale * dense_low", "", "units", "column"),
    Formula("experts_learning", "(expert_learns + lora_scale * expert_low) / ep", "", "units", "column"),
    Formula("dense_sum", "dense_part", "whole weights of a process's stages but for experts", "units"),
    Formula("expert_sum", "expert_part", "whole weights of its experts", "units"),
    Formula("dense_learn_sum", "learning", "those that train, elements", "units"),
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
        "whole weights that a pass reads, packed where they are frozen",
        "units",
    ),
    Formula(
        "multiplied_out",
        "where(size == 1, values * count * rows * rest / where(expert > 0, ep, 1), 0)",
        "numbers that frozen bytes are dequantized to in a pass",
        "tensors",
    ),
    Formula("from_disk", "where(streamed > 0, all_packed, 0)", "bytes that a pass reads from files"),
    Formula("gathered", "cut * where(keeps > 0, unit_sum, unit_most + unit_around)", "whole weights beside the pieces"),
)

TOKENS = (
    Formula("u", "where(w < 4, 1, 0)"),
    Formula("row", "ceil(length / cp) * cp", "tokens of a row: slices are equal"),
    Formula("N", "rows_at_a_time * row / cp", "tokens of a micro-batch here"),
    Formula("P", "N * K", "token-expert pairs"),
    Formula("Q", "where(ep > 1, P * skew, P)", "pairs that arrive here"),
    Formula("el", "E / ep", "experts here"),
)

BLOCK = (
    Formula("exit_read", "N * (8 * u * S * D + 2 * D * w + 12 * S + 4)", "one reading of the streams by a head"),
    Formula("chooses", "where(ratio == 4, where(floor(row / 4) > topk, 1, 0), 0)", "", "blocks", "column"),
    Formula("channels", "where(ratio == 4, 2 * C, C)", "", "blocks", "column"),
    Formula("entries", "where(ratio > 0, floor(N / max(ratio, 1)), 0)", "compressed entries here", "blocks", "column"),
    Formula(
        "hyper",
        "2 * N * (S * D * w + 2 * D * w + 4 * (S * (2 + S) + 1 + S + S * S))",
        "both hyper-connections: streams, what is read, what the branch gives, router outputs, mixing weights",
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
        "fp32 inputs and weights of values and gates, both results; entries; the indexer's choice",
        "blocks",
        "column",
    ),
    Formula(
        "gate",
        "N * (D * w + 4 + u * D * 4 + 12 * E + K * (16 + 9 * hashed) + 4) + u * E * D * 4",
        "normed input and its fp32 copy; logits, their softplus, scores; the choice and its weights",
        "blocks",
        "column",
    ),
    Formula(
        "experts",
        "2 * Q * F * w + where(ep > 1, Q * (D * w + 36) + 20 * P, 28 * P) + N * 3 * F * w"
        " + frozen * (Q * (F * (w + 8) + 4 * D) + where(ep > 1, 0, Q * D * w))",
        "each pair's gate and up, its token where it travelled, orders; the shared expert's gate, up and product;"
        " where experts are frozen also each pair's token, products and output",
        "blocks",
        "column",
    ),
    Formula("ahead", "mtp * N * ((2 + S) * D * w + 4 + 4 * S)", "the MTP block's entry", "blocks", "column"),
    Formula("saved", "hyper + attention + compressed + gate + experts + ahead", "all for backward", "blocks", "column"),
    Formula("input", "N * S * D * w + mtp * N * D * w", "of a block", "blocks", "column"),
    Formula(
        "products",
        "N * (R * w + H * C * w + C * w + D * w + 2 * F * w + D * w + 4 * E + 8 * S * (2 + S))"
        " + where(ratio > 0, 8 * N * channels, 0) + Q * D * w + where(ep > 1, Q * (D * w + 4) + 4 * P * D, 0)"
        " + chooses * N * (Hi * I * w + Hi * w + 16 * I)",
        "what `selective` keeps beside the input: results of products with weights, and tokens that travelled",
        "blocks",
        "column",
    ),
    Formula(
        "kept",
        "where(recompute == 0, saved, where(recompute == 1, input, input + products))",
        "from forward to backward",
        "blocks",
        "column",
    ),
    Formula(
        "fresh",
        "where(cut > 0, w * learn_block, (1 - frozen) * el * F * D * (12 + u * w))",
        "new gradients: a block's until FSDP2 takes them; else its experts', in fp32 before they are added",
        "blocks",
        "column",
    ),
    Formula(
        "work",
        "max(saved - kept, 0) + fresh + (2 - u) * N * S * D * w + 4 * N * D + where(ep > 1, 4 * D * (2 * P + Q), 0)"
        " + mtp * (where(recompute > 0, exit_read + (1 - u) * N * S * D * w, 0) + (16 + 4 * u) * N * S * D)",
        "backward of a block: what is computed again, fresh gradients, gradients of streams and tokens",
        "blocks",
        "column",
    ),
)

ACTIVATIONS = (
    Formula(
        "whole_gradients",
        "cut * where(micro_batches > 1, 4 * learn_sum, learn_most)",
        "gradients before their reduction: fp32 of all where micro-batches add up, else of one block",
    ),
    Formula(
        "blocks_saved", "count * saved", "for backward of one micro-batch, if nothing were computed again", "blocks"
    ),
    Formula("blocks_held", "count * flight * kept", "of blocks, micro-batches in flight", "blocks"),
    Formula("block_work", "work", "of the block that is being computed", "blocks", "max"),
    Formula(
        "exit_held",
        "head * (8 * N + exit_read * (1 + where(recompute == 0, mtp_runs, 0))"
        " + N * S * D * w * where(mtp_runs > 0, where(recompute == 0, 2 - u, 0), 1 - u))",
        "what head and MTP block read at the end, and the last streams",
    ),
    Formula("losses", "head * (1 + mtp_runs)", "next token, and the one after"),
    Formula(
        "loss_kept", "learns_head * V * D * w + N * D * w", "gradients computed with a loss, until its backward ends"
    ),
    Formula(
        "logits_made",
        "4 * V * (min(N, 1024) * (1 + twice) + max(0, min(N - 1024, 1024))) + u * 4 * min(N, 1024) * min(V, 8192)",
        "in chunks of 1,024; a low-precision head is multiplied 8,192 rows at a time, whose products are copied",
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
        "while its gradients are multiplied and added",
    ),
    Formula(
        "block_moment",
        "losses * loss_kept + max(block_work, head * (exit_held + 16 * N * S * D))",
        "backward of blocks",
    ),
    Formula(
        "shipped",
        "(micro_batches * (arrivals + departures) + leaving) * N * (S + mtp_runs) * D * w",
        "streams between stages: the engine has a buffer for each micro-batch, both ways, and keeps what it sent",
    ),
    Formula("activations", "blocks_held + shipped + block_moment - losses * loss_kept", "estimated"),
    Formula(
        "logits",
        "losses * loss_kept + max(0, max(loss_moment, loss_return) - block_moment)",
        "of losses: what they keep, and what they take beyond the fullest block",
    ),
)

MARGIN = (
    Formula("made", "gathered + whole_gradients + activations + logits", "what a step makes and frees"),
    Formula("nccl", "communicators * nccl_bytes", "buffers of process groups"),
    Formula("engine", "cut * where(keeps > 0, 2 * (unit_sum / max(1, units_count)), 2 * unit_most)", "FSDP2's own"),
    Formula("allocator", "allocator_share * made", "holes between blocks"),
    Formula("elsewhere", "cut * where(offload > 0, state - buffers, 0)", "pieces in the host's memory"),
    Formula("total", "state - elsewhere + made + nccl + engine + allocator + context", "of the GPU's memory"),
)

HELD = PLACE + STATE + STEP
"""What follows from the mesh alone."""
MADE = TOKENS + BLOCK + ACTIVATIONS + MARGIN
"""What follows from micro-batches and order of work too."""
FORMULAS = HELD + MADE
BARS = ("bf16", "fp32", "packed", "buffers", "gradients", "moments", "master", "gathered", "whole_gradients",
        "activations", "logits", "engine", "nccl", "allocator", "context")  # fmt: skip
"""Parts of `total`, from the ground up."""
EXACT = ("bf16", "fp32", "packed", "buffers", "gradients", "moments", "master")
"""Counted, not estimated."""
