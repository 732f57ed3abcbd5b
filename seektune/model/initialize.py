"""A complete random initialisation: each parameter and buffer is set by the first rule that its name matches."""

import re
from collections.abc import Callable, Mapping
from zlib import crc32

import torch
from torch import Tensor

from seektune.checkpoint import Shard, as_shard
from seektune.model.config import DeepseekV4Config

SMALL_SCALE = 0.01
"""Gating factors of hyper-connections at the start: small, so that mixing is nearly static (paper section 2.2)."""
STAY = 4.0
"""Initial logit of a stream for staying itself; after softmax over four streams about 0.95."""

Fill = Callable[[Tensor, DeepseekV4Config, torch.Generator], object]


def _normal(x: Tensor, config: DeepseekV4Config, dice: torch.Generator) -> object:
    return x.normal_(0.0, config.initializer_range, generator=dice)


def _stream_bases(x: Tensor, config: DeepseekV4Config, _: torch.Generator) -> object:
    n = config.hc_mult
    return x.copy_(torch.cat([torch.zeros(2 * n), STAY * torch.eye(n).flatten()]))


def _distinct_experts(x: Tensor, config: DeepseekV4Config, dice: torch.Generator) -> object:
    order = torch.rand(x.shape[0], config.n_routed_experts, generator=dice).argsort(dim=1)
    return x.copy_(order[:, : x.shape[1]])


RULES: tuple[tuple[str, Fill], ...] = (
    (r"hc_(attn|ffn)\.base", _stream_bases),
    (r"hc_head\.base|attn_sink|ape|gate\.bias", lambda x, *_: x.zero_()),
    (r"hc_(attn|ffn|head)\.scale", lambda x, *_: x.fill_(SMALL_SCALE)),
    (r"norm\.weight", lambda x, *_: x.fill_(1.0)),
    (r"gate\.tid2eid", _distinct_experts),
    (r"weight|hc_(attn|ffn|head)\.fn|experts\.w[123]", _normal),
)
"""How a tensor starts, by the end of its name."""


@torch.no_grad()
def initialize(state: Mapping[str, Tensor | Shard], config: DeepseekV4Config) -> None:
    """Fill a model's state dict, or the pieces of it that are here, in place.

    One number is drawn from torch's global generator; each tensor, and each expert of a stacked one, then has a
    generator of its own on the CPU. So the same seed gives the same model on any device and however it is cut.
    """
    base = int(torch.randint(2**62, ()))
    for name, held in state.items():
        fills = [fill for pattern, fill in RULES if re.search(rf"(^|\.|_)?(?:{pattern})$", name)]
        assert fills, f"no initialiser for {name}"
        shard = as_shard(held)
        if len(shard.shape) < 3:
            whole = torch.empty(shard.shape, dtype=_drawn(shard.tensor))
            fills[0](whole, config, _dice(base, name))
            shard.tensor.copy_(whole[shard.box])
            continue
        for expert, mine in enumerate(shard.tensor, start=shard.offsets[0]):
            whole = torch.empty(shard.shape[1:], dtype=_drawn(shard.tensor))
            fills[0](whole, config, _dice(base, f"{name}.{expert}"))
            mine.copy_(whole[shard.box[1:]])


def _drawn(x: Tensor) -> torch.dtype:
    """Floats are drawn in fp32 or better and rounded, whatever the model's dtype is."""
    return torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else x.dtype


def _dice(base: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(base ^ crc32(name.encode()))
