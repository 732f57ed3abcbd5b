"""Exact FLOPs of training DSpark stages, from the config alone, without torch; counted as in `model.flops`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from seektune.model.config import SLIDING, DeepseekV4Config
from seektune.model.flops import layer_flops


@dataclass(frozen=True)
class DraftFlops:
    """FLOPs of a micro-batch's drafts by part of the model; those of the backbone are not in them."""

    forward: Mapping[str, int]
    backward: Mapping[str, int]
    """Gradients of inputs and weights; a frozen input has none."""


def draft_flops(config: DeepseekV4Config, tokens: int, anchors: int) -> DraftFlops:
    """FLOPs of drafts from some anchors of a micro-batch of `tokens` tokens, which the stages remember."""
    assert config.dspark_block_size is not None, "the config has the keys of DSpark"
    drafted = anchors * config.dspark_block_size
    source = _source(config, tokens)
    keys = _keys(config, tokens)
    stages = _stages(config, drafted)
    frozen = 2 * drafted * config.hidden_size * config.vocab_size
    heads = _heads(config, drafted)
    drafts = stages + Counter(head=2 * frozen + heads)
    # the logits of the drafts have a gradient of their inputs, those of the backbone none
    back = _twice(stages) + Counter(projections=source + 2 * keys, head=frozen + 2 * heads)
    return DraftFlops(drafts + Counter(projections=source + keys), back)


def _source(config: DeepseekV4Config, tokens: int) -> int:
    """From the backbone's layers to what the stages remember."""
    return 2 * tokens * len(config.dspark_target_layer_ids or ()) * config.hidden_size**2


def _keys(config: DeepseekV4Config, tokens: int) -> int:
    """The keys of remembered tokens in all stages."""
    return 2 * tokens * config.hidden_size * config.head_dim * config.dspark_stages


def _stages(config: DeepseekV4Config, drafted: int) -> Counter[str]:
    """The blocks; every token sees the whole window and its whole draft."""
    keys = config.sliding_window + (config.dspark_block_size or 0)
    block = layer_flops(config, SLIDING, drafted)
    block["attention"] = 4 * config.num_attention_heads * config.head_dim * drafted * keys
    streams = config.hc_mult
    read = 2 * drafted * (streams * streams + streams) * config.hidden_size
    return Counter({part: config.dspark_stages * flops for part, flops in block.items()}) + Counter(mHC=read)


def _heads(config: DeepseekV4Config, drafted: int) -> int:
    """The Markov head and the confidence head."""
    rank = config.dspark_markov_rank or 0
    return 2 * drafted * (rank * config.vocab_size + config.hidden_size + rank)


def _twice(flops: Counter[str]) -> Counter[str]:
    return flops + flops
