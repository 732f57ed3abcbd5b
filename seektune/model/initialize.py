"""A complete random initialisation: each parameter and buffer is set by the first rule that its name matches."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from zlib import crc32

import torch
from torch import Tensor

from seektune.checkpoint import Shard, as_shard
from seektune.checkpoint.formats import QUANTIZED
from seektune.checkpoint.lowbit import as_parameters, lowbit_kind, lowbit_names
from seektune.checkpoint.shard import Box
from seektune.checkpoint.stored import Stored, encode
from seektune.model.config import DeepseekV4Config

SMALL_SCALE = 0.01
"""Gating factors of hyper-connections at the start: small, so that mixing is nearly static (paper section 2.2)."""
STAY = 4.0
"""Initial logit of a stream for staying itself; after softmax over four streams about 0.95."""

Fill = Callable[[Tensor, DeepseekV4Config, torch.Generator], object]
Draw = Callable[[str, str, Tensor], Tensor]
"""Fills the whole tensor of a name, or one expert's of it, with a generator that is seeded by another name."""


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
    """Fill a model's state dict, or the pieces of it that are here, in place; quantized weights with rounded values.

    One number is drawn from torch's global generator; each tensor, and each expert of a stacked one, then has a
    generator of its own on the CPU. So the same seed gives the same model on any device and however it is cut.
    """
    base = int(torch.randint(2**62, ()))
    shards = {name: as_shard(held) for name, held in state.items()}
    scales = lowbit_names({name: shard.tensor for name, shard in shards.items()})
    draw = partial(_draw, config, base)
    for name, shard in shards.items():
        if name in scales:
            _fill_packed(name, shard, shards[scales[name]], draw)
        elif name not in set(scales.values()):
            _fill(name, shard, draw)


def _draw(config: DeepseekV4Config, base: int, name: str, seed: str, whole: Tensor) -> Tensor:
    fills = [fill for pattern, fill in RULES if re.search(rf"(^|\.|_)?(?:{pattern})$", name)]
    assert fills, f"no initialiser for {name}"
    fills[0](whole, config, torch.Generator().manual_seed(base ^ crc32(seed.encode())))
    return whole


def _fill(name: str, shard: Shard, draw: Draw) -> None:
    x = shard.tensor
    empty = partial(torch.empty, dtype=_drawn(shard.tensor))
    if x.dim() < 3:
        x.copy_(draw(name, name, empty(shard.shape))[shard.box])
        return
    for expert, mine in enumerate(x, start=shard.offsets[0]):
        mine.copy_(draw(name, _of_expert(name, expert), empty(shard.shape[1:]))[shard.box[1:]])


def _fill_packed(name: str, weight: Shard, scale: Shard, draw: Draw) -> None:
    """What a plain weight of that name would get, quantized as a whole, of which the pieces here are kept."""
    kind = lowbit_kind(weight.tensor, scale.tensor)
    *rows, columns = weight.shape
    shape = rows[-1], columns * QUANTIZED[kind].packing
    if len(weight.shape) == 2:
        _keep(draw(name, name, torch.empty(shape)), kind, [(weight.tensor, weight.box), (scale.tensor, scale.box)])
        return
    experts = {expert for shard in (weight, scale) for expert in range(shard.box[0].start, shard.box[0].stop)}
    for expert in sorted(experts):
        values = draw(name, _of_expert(name, expert), torch.empty(shape))
        here = [shard.expert(expert) for shard in (weight, scale)]
        _keep(values, kind, [None if part is None else (part.tensor, part.box) for part in here])


def _keep(values: Tensor, kind: str, places: Sequence[tuple[Tensor, Box] | None]) -> None:
    stored = encode(Stored("f32", values), values, kind)
    for place, found in zip(places, as_parameters(stored), strict=True):
        if place is not None:
            place[0].copy_(found[place[1]])


def _of_expert(name: str, expert: int) -> str:
    """What seeds one expert's values: the same for frozen experts, whose weights are a level deeper, and others."""
    return f"{name.removesuffix('.weight')}.{expert}"


def _drawn(x: Tensor) -> torch.dtype:
    """Floats are drawn in fp32 or better and rounded, whatever the model's dtype is."""
    return torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else x.dtype
