"""Weights, gradients and optimizer state of a process as formulas; names and tables are those of `formulas`."""

from seektune.planner.expressions import Formula
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


def sizes(table: str, prefix: str = "") -> tuple[Formula, ...]:
    """The elements that a process holds of each row of a table of tensors; `prefix` begins the names of the columns."""
    tall = f"{prefix}tall"
    broad = f"{prefix}broad"
    return (
        Formula(
            tall,
            "where(low == 1, rows * lora_scale, rows)",
            "first dim; for some adapter matrices their rank",
            table,
            "column",
        ),
        Formula(broad, "where(low == 2, rest * lora_scale, rest)", "elements of a row", table, "column"),
        Formula(
            f"{prefix}numel",
            f"count * where(whole > 0, {tall} * {broad}, where(expert > 0, {tall} / ep * {broad} / expert_shards,"
            f" {broad} * max(0, min(ceil({tall} / fsdp), {tall} - shard * ceil({tall} / fsdp)))))",
            "elements here: FSDP2 splits the first dim into equal shards, the last ones shorter or empty",
            table,
            "column",
        ),
    )


STATE = (
    *sizes("tensors"),
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
