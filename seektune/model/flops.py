"""Exact model FLOPs of a row of tokens, by part, from the config alone, without torch.

Counts multiplications and additions of matrix products, two per pair, as torch's FlopCounterMode does. Work that an
implementation wastes (masked keys, recomputation) is not counted. One document per row.
"""

from collections import Counter

from seektune.model.choices import IndexerStage
from seektune.model.config import CSA, HCA, SLIDING, DeepseekV4Config

SAMPLED = 64
"""One query of so many is measured for recall (`seektune.model.indexer_loss`)."""
PARTS = ("attention", "projections", "compressor", "indexer", "experts", "gate", "mHC", "head")
"""`attention`: scores and sums over keys. `projections`: queries, keys and output."""


def forward_flops(
    config: DeepseekV4Config, length: int, mtp: bool = False, indexers: IndexerStage = "frozen"
) -> dict[str, int]:
    """FLOPs of a forward pass of `length` tokens with the loss of all of them, by part.

    What trained indexers need for their loss and its gradients is counted as a part of forward.
    """
    total: Counter[str] = Counter()
    for layer in range(config.num_hidden_layers):
        total.update(layer_flops(config, config.ratio(layer), length, indexers))
    total.update(_head(config, length))
    if mtp and config.mtp_layers:
        rows = max(length - 1, 0)
        total.update(layer_flops(config, SLIDING, rows))
        total.update(_head(config, rows))
        total["projections"] += 2 * rows * (1 + config.hc_mult) * config.hidden_size**2
    return {part: total[part] for part in PARTS}


def training_flops(config: DeepseekV4Config, length: int, mtp: bool = False) -> dict[str, int]:
    """FLOPs of forward and backward: every product has two gradients of its own size; the indexer has no backward."""
    forward = forward_flops(config, length, mtp)
    return {part: flops * (1 if part == "indexer" else 3) for part, flops in forward.items()}


def layer_flops(config: DeepseekV4Config, ratio: int, length: int, indexers: IndexerStage = "frozen") -> dict[str, int]:
    """Forward FLOPs of one layer with a compression ratio, by part."""
    width = config.hidden_size
    heads = config.num_attention_heads
    head = config.head_dim
    rank = config.q_lora_rank
    out = config.o_lora_rank
    project = width * rank + rank * heads * head + width * head + heads * head * out + config.o_groups * out * width
    inner = config.moe_intermediate_size
    streams = config.hc_mult
    # twice (attention, experts): router, read, mix
    mix = 2 * (streams * (2 + streams) * streams + streams + streams * streams) * width
    found = {
        "attention": 4 * heads * head * visible_keys(config, ratio, length),
        "projections": 2 * length * project,
        "experts": 2 * length * 3 * width * inner * (config.num_experts_per_tok + config.n_shared_experts),
        "gate": 2 * length * width * config.n_routed_experts,
        "mHC": 2 * length * mix,
    }
    if ratio != SLIDING:
        found["compressor"] = 2 * length * _compressor(width, head, ratio)
    if chooses(config, ratio, length):
        found["indexer"] = _indexer(config, length)
    return (
        found
        if indexers == "frozen" or ratio != CSA
        else _with_indexer_training(config, length, found, indexers == "warmup")
    )


def visible_keys(config: DeepseekV4Config, ratio: int, length: int) -> int:
    """Total number of window keys and entries visible to the queries of a row."""
    window = min(config.sliding_window, length)
    near = window * (window + 1) // 2 + (length - window) * window
    if ratio == SLIDING:
        return near
    if not chooses(config, ratio, length):
        return near + _entries(length, ratio)
    # up to the first query that sees more entries than index_topk
    full = config.index_topk * CSA + CSA - 1
    return near + _entries(min(length, full), CSA) + max(length - full, 0) * config.index_topk


def chooses(config: DeepseekV4Config, ratio: int, length: int) -> bool:
    """Whether a layer's indexer has more than `index_topk` entries to choose from."""
    return ratio == CSA and length // CSA > config.index_topk


def _entries(length: int, ratio: int) -> int:
    """Sum over queries t of the complete entries, `(t + 1) // ratio`."""
    whole, rest = divmod(length, ratio)
    return ratio * whole * (whole - 1) // 2 + whole * (rest + 1)


def _compressor(width: int, head: int, ratio: int) -> int:
    return 2 * width * head * (1 if ratio == HCA else 2)


def _indexer(config: DeepseekV4Config, length: int) -> int:
    return 2 * length * _index_weights(config) + _score(config) * _scored(config, length)


def _index_weights(config: DeepseekV4Config) -> int:
    """Elements of an indexer's matrices."""
    width = config.hidden_size
    heads = config.index_n_heads
    head = config.index_head_dim
    return _compressor(width, head, CSA) + config.q_lora_rank * heads * head + width * heads


def _score(config: DeepseekV4Config) -> int:
    """FLOPs of the score of an entry for a query."""
    return 2 * config.index_n_heads * (config.index_head_dim + 1)


def _with_indexer_training(config: DeepseekV4Config, length: int, found: dict[str, int], dense: bool) -> dict[str, int]:
    """FLOPs of a CSA layer whose indexer is trained; `dense` attention is that to all entries."""
    logit = 2 * config.num_attention_heads * config.head_dim
    every = _entries(length, CSA)
    seen = visible_keys(config, CSA, length) - visible_keys(config, SLIDING, length)
    choice = 0 if dense else _score(config) * _scored(config, length)
    attention = found["attention"] + (2 * logit * (every - seen) if dense else 0)
    # scores and both of their gradients, and the logits of attention again; recall at a sample of the queries
    loss = (3 * _score(config) + logit) * (every if dense else seen) + (_score(config) + logit) * every // SAMPLED
    # the input has no gradient, so matrices have two products
    indexer = 2 * 2 * length * _index_weights(config) + choice + loss
    return {**found, "attention": attention, "indexer": indexer}


def _scored(config: DeepseekV4Config, length: int) -> int:
    """Query-entry pairs that need a score: those of queries that see more than `index_topk` entries."""
    full = config.index_topk * CSA + CSA - 1
    return _entries(length, CSA) - _entries(min(length, full), CSA)


def _head(config: DeepseekV4Config, length: int) -> dict[str, int]:
    streams = config.hc_mult
    width = config.hidden_size
    read = (streams * streams + streams) * width
    return {"mHC": 2 * length * read, "head": 2 * length * width * config.vocab_size}
