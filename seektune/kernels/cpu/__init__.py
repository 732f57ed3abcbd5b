"""Twins in C++ for the few tokens of a decode step on a CPU, where torch's overhead exceeds the arithmetic.

Each has its reference's arguments, and returns None if it does not apply: they are written for fp32 and small
matrices. Shapes: as in `reference`.
"""

from ctypes import c_int64

import torch
from torch import Tensor

from seektune.kernels.cpu.library import function
from seektune.kernels.reference.sparse_attention import Chosen, Prefix, Visible

WORK = 2**25
"""Most multiplications of a call; beyond them torch's products, which use all cores, are faster."""
ROWS = 32
"""Most tokens of a product with a matrix."""
MATRIX = 2**20
"""Most elements of a matrix."""
STREAMS = 16
"""Most streams; see `MOST` in hyper.cpp."""


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor | None:
    """See `reference.clamped_swiglu`."""
    if not fp32(gate, up):
        return None
    out = gate.new_empty(*gate.shape)
    call("clamped_swiglu", (gate, up, out), gate.numel(), limit)
    return out


def weighted_swiglu(gate_PF: Tensor, up_PF: Tensor, weights_P: Tensor, limit: float) -> Tensor | None:
    """See `reference.weighted_swiglu`."""
    out = clamped_swiglu(gate_PF, up_PF, limit)
    return None if out is None else out.mul_(weights_P[:, None])


def expert_mlp(
    x_ND: Tensor,
    tokens_P: Tensor,
    weights_P: Tensor,
    w1_EFD: Tensor,
    w2_EDF: Tensor,
    w3_EFD: Tensor,
    counts: list[int],
    limit: float,
) -> Tensor | None:
    """See `reference.expert_mlp`."""
    experts, inner, width = w1_EFD.shape
    matrices = w1_EFD, w2_EDF, w3_EFD
    if 3 * len(tokens_P) * inner * width > WORK or not fp32(x_ND, weights_P, *matrices):
        return None
    if not all(w.is_contiguous() for w in matrices):
        return None
    out_ND = x_ND.new_zeros(*x_ND.shape)
    room = x_ND.new_empty(8 * inner)
    counts_E = (c_int64 * experts)(*counts)
    call("expert_mlp", (x_ND, tokens_P, weights_P, *matrices, out_ND, room), counts_E, experts, width, inner, limit)
    return out_ND


def grouped_linear(x_NGI: Tensor, weight_OI: Tensor, groups: int) -> Tensor | None:
    """See `reference.grouped_linear`."""
    outputs, inputs = weight_OI.shape
    tokens = x_NGI.numel() // (groups * inputs)
    if tokens > ROWS or outputs * inputs > MATRIX or not fp32(x_NGI, weight_OI):
        return None
    out = x_NGI.new_empty(*x_NGI.shape[:-1], outputs // groups)
    call("grouped_linear", (x_NGI, weight_OI, out), tokens, groups, inputs, outputs // groups)
    return out


def hyper_read(
    streams_NSD: Tensor, fn_OI: Tensor, base_O: Tensor, scale_3: Tensor, iterations: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `reference.hyper_read`; tokens may have several dims."""
    *tokens, n, width = streams_NSD.shape
    if n > STREAMS or not fp32(streams_NSD, fn_OI, base_O, scale_3):
        return None
    y_ND = streams_NSD.new_empty(*tokens, width)
    write_NS = streams_NSD.new_empty(*tokens, n)
    mix_NSS = streams_NSD.new_empty(*tokens, n, n)
    tensors = streams_NSD, fn_OI, base_O, scale_3, y_ND, write_NS, mix_NSS
    call("hyper_read", tensors, write_NS.numel() // n, n, width, iterations, eps, norm_eps)
    return y_ND, write_NS, mix_NSS


def hyper_write(streams_NSD: Tensor, y_ND: Tensor, write_NS: Tensor, mix_NSS: Tensor) -> Tensor | None:
    """See `reference.hyper_write`; tokens may have several dims."""
    if not fp32(streams_NSD, y_ND, write_NS, mix_NSS):
        return None
    n, width = streams_NSD.shape[-2:]
    out = streams_NSD.new_empty(*streams_NSD.shape)
    call("hyper_write", (streams_NSD, y_ND, write_NS, mix_NSS, out), out.numel() // (n * width), n, width)
    return out


def index_topk(q_BTHI: Tensor, keys_BEI: Tensor, weights_BTH: Tensor, visible: Prefix, k: int) -> Chosen | None:
    """See `reference.index_topk`; the order within a list may be another."""
    rows, queries, heads, width = q_BTHI.shape
    entries = keys_BEI.shape[1]
    if q_BTHI.numel() * entries > WORK or not (fp32(q_BTHI, keys_BEI, weights_BTH) and are_rows(keys_BEI)):
        return None
    k = min(k, entries)
    out_BTK = visible.first_BT.new_empty(rows, queries, k)
    room = q_BTHI.new_empty(2 * entries)
    tensors = q_BTHI, weights_BTH, visible.first_BT, visible.count_BT, out_BTK, room
    call("index_topk", tensors, keys_BEI.data_ptr(), rows, queries, heads, width, keys_BEI.stride(0), entries, k)
    return Chosen(out_BTK)


def linear(x: Tensor, weight_OI: Tensor) -> Tensor | None:
    """See `reference.linear`."""
    outputs, inputs = weight_OI.shape
    tokens = x.numel() // inputs
    if tokens > ROWS or outputs * inputs > MATRIX or not fp32(x, weight_OI):
        return None
    out = x.new_empty(*x.shape[:-1], outputs)
    call("grouped_linear", (x, weight_OI, out), tokens, 1, inputs, outputs)
    return out


def norm_rope(x_BTHC: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, eps: float) -> Tensor | None:
    """See `reference.norm_rope`."""
    heads, width = x_BTHC.shape[-2:]
    if cos_BTR.shape[:-1] != x_BTHC.shape[:-2] or not fp32(x_BTHC, cos_BTR, sin_BTR):
        return None
    out = x_BTHC.new_empty(*x_BTHC.shape)
    sizes = out.numel() // width, heads, width, cos_BTR.shape[-1]
    call("norm_rope", (x_BTHC, cos_BTR, sin_BTR, out), *sizes, eps)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """See `reference.rms_norm`."""
    if not fp32(x, weight):
        return None
    out = x.new_empty(*x.shape)
    call("rms_norm", (x, weight, out), out.numel() // out.shape[-1], out.shape[-1], eps)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    """See `reference.rotate`; angles of a token may be shared by its heads."""
    heads = 1 if cos.shape[:-1] == x.shape[:-1] else x.shape[-2]
    if not fp32(x, cos, sin) or (heads != 1 and cos.shape[:-1] != (*x.shape[:-2], 1)):
        return None
    out = x.new_empty(*x.shape)
    call("rotate", (x, cos, sin, out), out.numel() // out.shape[-1], heads, out.shape[-1], cos.shape[-1])
    return out


def route(logits_NE: Tensor, bias_E: Tensor, k: int, factor: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `reference.route`."""
    if not fp32(logits_NE, bias_E):
        return None
    tokens, experts = logits_NE.shape
    scores_NE = logits_NE.new_empty(tokens, experts)
    chosen_NK = torch.empty(tokens, k, dtype=torch.int64)
    weights_NK = logits_NE.new_empty(tokens, k)
    call("route", (logits_NE, bias_E, scores_NE, chosen_NK, weights_NK), tokens, experts, k, factor)
    return chosen_NK, weights_NK, scores_NE


def sort_pairs(experts_NK: Tensor, weights_NK: Tensor, n_experts: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `reference.sort_pairs`."""
    if not fp32(weights_NK):
        return None
    pairs = experts_NK.numel()
    tokens_P = experts_NK.new_empty(pairs)
    weights_P = weights_NK.new_empty(pairs)
    counts_E = experts_NK.new_empty(n_experts)
    call("sort_pairs", (experts_NK, weights_NK, tokens_P, weights_P, counts_E), pairs, experts_NK.shape[1], n_experts)
    return tokens_P, weights_P, counts_E


def sparse_attention(
    q_BTHC: Tensor,
    keys_BNC: Tensor,
    entries_BEC: Tensor,
    sink_H: Tensor,
    positions_BT: Tensor,
    window: int,
    visible: Visible,
) -> Tensor | None:
    """See `reference.sparse_attention`."""
    rows, queries, heads, width = q_BTHC.shape
    held = entries_BEC.shape[1]
    most = window + (visible.index_BTK.shape[-1] if isinstance(visible, Chosen) else held)
    if 2 * q_BTHC.numel() * most > WORK or not fp32(q_BTHC, keys_BNC, entries_BEC, sink_H):
        return None
    if not (are_rows(keys_BNC) and are_rows(entries_BEC)):
        return None
    if isinstance(visible, Chosen):
        lists = (visible.index_BTK, visible.index_BTK)
        listed = visible.index_BTK.shape[-1] if held else 0
    else:
        lists = (visible.first_BT, visible.count_BT)
        listed = -1
    out = q_BTHC.new_empty(*q_BTHC.shape)
    tensors = q_BTHC, sink_H, positions_BT, *lists, out, q_BTHC.new_empty(most * (heads + 2))
    held_at = keys_BNC.data_ptr(), entries_BEC.data_ptr(), keys_BNC.stride(0), entries_BEC.stride(0)
    call("sparse_attention", tensors, *held_at, rows, queries, keys_BNC.shape[1], held, heads, width, window, listed)
    return out


def call(name: str, tensors: tuple[Tensor, ...], *rest: object) -> None:
    """Run a kernel: it gets where tensors lie, whose elements follow each other, then the other arguments."""
    rows = list(map(Tensor.contiguous, tensors))
    function(name)(*map(Tensor.data_ptr, rows), *rest)


def fp32(*tensors: Tensor) -> bool:
    """Whether all tensors are fp32."""
    return {x.dtype for x in tensors} == {torch.float32}


def are_rows(x_BNC: Tensor) -> bool:
    """Whether the vectors of each row follow each other."""
    return x_BNC.stride(2) == 1 and x_BNC.stride(1) == x_BNC.shape[2]
