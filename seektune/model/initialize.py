"""A complete random initialisation: each parameter and buffer is set by the first rule that its name matches."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from seektune.model.config import DeepseekV4Config

SMALL_SCALE = 0.01
"""Gating factors of hyper-connections at the start: small, so that mixing is nearly static (paper section 2.2)."""
STAY = 4.0
"""Initial logit of a stream for staying itself; after softmax over four streams about 0.95."""

Fill = Callable[[Tensor, DeepseekV4Config], object]


def _normal(x: Tensor, config: DeepseekV4Config) -> object:
    return x.normal_(0.0, config.initializer_range)


def _stream_bases(x: Tensor, config: DeepseekV4Config) -> object:
    n = config.hc_mult
    return x.copy_(torch.cat([torch.zeros(2 * n), STAY * torch.eye(n).flatten()]))


def _distinct_experts(x: Tensor, config: DeepseekV4Config) -> object:
    return x.copy_(torch.rand(x.shape[0], config.n_routed_experts, device=x.device).argsort(dim=1)[:, : x.shape[1]])


RULES: tuple[tuple[str, Fill], ...] = (
    (r"hc_(attn|ffn)\.base", _stream_bases),
    (r"hc_head\.base|attn_sink|ape|gate\.bias", lambda x, _: x.zero_()),
    (r"hc_(attn|ffn|head)\.scale", lambda x, _: x.fill_(SMALL_SCALE)),
    (r"norm\.weight", lambda x, _: x.fill_(1.0)),
    (r"gate\.tid2eid", _distinct_experts),
    (r"weight|hc_(attn|ffn|head)\.fn|experts\.w[123]", _normal),
)
"""How a tensor starts, by the end of its name."""


@torch.no_grad()
def initialize(state: dict[str, Tensor], config: DeepseekV4Config) -> None:
    """Fill a model's state dict in place, from torch's global generator."""
    for name, tensor in state.items():
        fills = [fill for pattern, fill in RULES if re.search(rf"(^|\.|_)?(?:{pattern})$", name)]
        assert fills, f"no initialiser for {name}"
        fills[0](tensor, config)
