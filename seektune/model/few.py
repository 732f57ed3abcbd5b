"""A block on few tokens without gradients on a CPU: everything but the look at other tokens in two compiled calls.

`Block.forward` is the definition, and what runs where this does not apply.
Shapes: B rows, T tokens, N tokens of all rows, S streams, D width.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seektune.kernels.cpu import MATRIX, ROWS, STREAMS, WIDE, WORK
from seektune.kernels.cpu.block import Sizes, enter, leave
from seektune.kernels.cpu.library import function
from seektune.kernels.dispatch import transformed
from seektune.model.config import DeepseekV4Config
from seektune.model.gate import HashGate, TopKGate
from seektune.model.linear import GroupedLinear, Linear
from seektune.model.moe import Experts, SharedExpert
from seektune.model.norm import RMSNorm
from seektune.model.token_dispatch import LocalDispatch
from seektune.sequence import SequenceLayout

if TYPE_CHECKING:
    from seektune.model.block import Block

AS_BUILT = frozenset((Linear, GroupedLinear, RMSNorm, Experts, SharedExpert, TopKGate, HashGate))
"""Modules whose weights say all; adapters and quantized weights put others in their place."""


def sizes(config: DeepseekV4Config) -> Sizes | None:
    """Those of a block; None where one token is work enough for torch's own products."""
    largest = config.num_attention_heads * config.head_dim * config.q_lora_rank
    work = 3 * config.num_experts_per_tok * config.hidden_size * config.moe_intermediate_size
    if config.hc_mult > STREAMS or largest > MATRIX or ROWS * work > WORK:
        return None
    return Sizes(
        streams=config.hc_mult,
        width=config.hidden_size,
        iterations=config.hc_sinkhorn_iters,
        rank=config.q_lora_rank,
        heads=config.num_attention_heads,
        head=config.head_dim,
        pairs=config.qk_rope_head_dim // 2,
        groups=config.o_groups,
        group_outputs=config.o_lora_rank,
        experts=config.n_routed_experts,
        experts_per_token=config.num_experts_per_tok,
        inner=config.moe_intermediate_size,
        hyper_eps=config.hc_eps,
        eps=config.rms_norm_eps,
        factor=config.routed_scaling_factor,
        limit=config.swiglu_limit,
    )


def few(block: "Block", streams_BTSD: Tensor, tokens_BT: Tensor | None, layout: SequenceLayout) -> Tensor | None:
    """Streams to streams; None where a part of the block is not as built, the tokens are many or elsewhere."""
    of, (rows, length, *_), dtype = block.sizes, streams_BTSD.shape, streams_BTSD.dtype
    if of is None or torch.is_grad_enabled() or transformed() or not 0 < rows * length <= ROWS:
        return None
    if type(streams_BTSD) is not Tensor or not streams_BTSD.is_cpu or function("block_enter", dtype) is None:
        return None
    attn = block.attn
    ffn = block.ffn
    weights = as_built(block, dtype)
    if weights is None or type(ffn.dispatch) is not LocalDispatch:
        return None
    norm, wq_a, q_norm, wq_b, wkv, kv_norm, wo_a, wo_b, ffn_norm, gate, *shared = weights
    before = block.hc_attn
    after = block.hc_ffn
    routed = ffn.experts
    choice = ffn.gate
    bias = None
    table = None
    if isinstance(choice, TopKGate):
        bias = choice.bias
    elif isinstance(choice, HashGate) and tokens_BT is not None:
        table = choice.tid2eid[tokens_BT.flatten()].long()
        if not 0 <= int(table.min()) <= int(table.max()) < of.experts:
            return None  # the definition refuses
    else:
        return None  # the definition says what is missing
    high = before.fn, before.base, before.scale, after.fn, after.base, after.scale, bias
    if not all(x is None or (x.dtype == WIDE[dtype] and x.is_contiguous()) for x in high):
        return None  # the whole model was cast
    if not all(x.is_contiguous() for x in (routed.w1, routed.w2, routed.w3)):
        return None
    streams = streams_BTSD.flatten(0, 1).contiguous()
    rotation = layout.at_positions(attn.rope)
    turned = rotation.wide(WIDE[dtype])
    entry = before.fn, before.base, before.scale, norm, wq_a, q_norm, wq_b, wkv, kv_norm
    entered = enter(streams, entry, turned.cos, turned.sin, of)
    o_BTHC = attn.attend(
        entered.x_ND.view(rows, length, of.width),
        entered.q_residual_NR.view(rows, length, of.rank),
        entered.q_NHC.view(rows, length, of.heads, of.head),
        entered.keys_NC.view(rows, length, of.head),
        rotation,
        layout.at(ffn.layer),
    )
    mixing = after.fn, after.base, after.scale, ffn_norm, gate, bias, table, routed.w1, routed.w2, routed.w3, *shared
    back = turned.inverse
    return leave(streams, o_BTHC, back.cos, back.sin, entered, (wo_a, wo_b, *mixing), of).view_as(streams_BTSD)


PARTS = (
    ("", "attn_norm"),
    *(("attn", name) for name in ("wq_a", "q_norm", "wq_b", "wkv", "kv_norm", "wo_a", "wo_b")),
    *(("", "ffn_norm"), ("ffn", "gate")),
    *(("shared_experts", name) for name in ("w1", "w2", "w3")),
)
"""What `few` takes weights of, in its order: the module that holds a part, and its name there."""


def as_built(block: "Block", dtype: torch.dtype) -> list[Tensor] | None:
    """The weights of `PARTS`; None where one of them is no longer what the model was built of, or somebody listens."""
    # straight from the dicts of modules: looked up by name, forty of them take as long as the block's arithmetic
    ffn: Any = block.ffn._modules
    holders: dict[str, Any] = {"": block._modules, "attn": block.attn._modules, "ffn": ffn}
    holders["shared_experts"] = block.ffn.shared_experts._modules
    found: list[Tensor] = []
    for holder, name in PARTS:
        part = holders[holder][name]
        weight = part._parameters["weight"] if type(part) in AS_BUILT else None
        if type(weight) is not nn.Parameter or weight.dtype != dtype or not weight.is_contiguous():
            return None
        if part._forward_hooks or part._forward_pre_hooks:
            return None
        found.append(weight)
    for whole in (block.attn, block.ffn, ffn["experts"], ffn["shared_experts"], block.hc_attn, block.hc_ffn):
        if whole._forward_hooks or whole._forward_pre_hooks:
            return None
    stacked = ffn["experts"]._parameters.values()
    if type(ffn["experts"]) is not Experts or any(type(w) is not nn.Parameter or w.dtype != dtype for w in stacked):
        return None
    return found
