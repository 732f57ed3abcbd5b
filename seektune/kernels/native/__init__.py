"""Twins in C++ for few tokens on a CPU, without gradients: where text is written, calls cost more than arithmetic.

Each takes what its definition takes, and gives None where it does not apply.
Shapes: as in `reference`.
"""

import torch
from torch import Tensor

from seektune.kernels.native.library import function
from seektune.kernels.reference.sparse_attention import Chosen, Prefix, Visible

WORK = 2**24
"""Multiplications of a call; beyond them torch's products, which use all cores, are faster."""
ROWS, MATRIX = 16, 2**20
"""Most tokens of a product with a matrix, and elements of it, that is read faster here than by torch."""
STREAMS = 16
"""Most streams; see `hyper.cpp`."""


def hyper_read(
    streams_NSD: Tensor, fn_OI: Tensor, base_O: Tensor, scale_3: Tensor, iterations: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `reference.hyper_read`."""
    run = function("hyper_read", streams_NSD.dtype)
    tokens, n, width = streams_NSD.shape
    if run is None or n > STREAMS or not are(_wide(streams_NSD.dtype), fn_OI, base_O, scale_3):
        return None
    streams_NSD, fn_OI = streams_NSD.contiguous(), fn_OI.contiguous()
    y_ND = streams_NSD.new_empty(tokens, width)
    write_NS, mix_NSS = fn_OI.new_empty(tokens, n), fn_OI.new_empty(tokens, n, n)
    inputs = streams_NSD, fn_OI, base_O.contiguous(), scale_3.contiguous()
    run(*at(*inputs, y_ND, write_NS, mix_NSS), tokens, n, width, iterations, eps, norm_eps)
    return y_ND, write_NS, mix_NSS


def hyper_write(streams_NSD: Tensor, y_ND: Tensor, write_NS: Tensor, mix_NSS: Tensor) -> Tensor | None:
    """See `reference.hyper_write`; tokens may have several dims."""
    run, high = function("hyper_write", streams_NSD.dtype), _wide(streams_NSD.dtype)
    n, width = streams_NSD.shape[-2:]
    if run is None or not (are(streams_NSD.dtype, y_ND) and are(high, write_NS, mix_NSS)):
        return None
    streams_NSD, y_ND = streams_NSD.contiguous(), y_ND.contiguous()
    out_NSD = torch.empty_like(streams_NSD)
    inputs = streams_NSD, y_ND, write_NS.contiguous(), mix_NSS.contiguous()
    run(*at(*inputs, out_NSD), y_ND.numel() // max(width, 1), n, width)
    return out_NSD


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """See `reference.rms_norm`."""
    run, width = function("rms_norm", x.dtype), x.shape[-1]
    if run is None or not are(x.dtype, weight):
        return None
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty_like(x)
    run(*at(x, weight, out), x.numel() // max(width, 1), width, eps)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    """See `reference.rotate`; angles of a token may be shared by its heads."""
    run, width, pairs = function("rotate", x.dtype), x.shape[-1], cos.shape[-1]
    heads = 1 if cos.shape[:-1] == x.shape[:-1] else x.shape[-2]
    if run is None or (heads != 1 and cos.shape[:-1] != (*x.shape[:-2], 1)):
        return None
    x, cos, sin = x.contiguous(), _angles(cos, x), _angles(sin, x)
    out = torch.empty_like(x)
    run(*at(x, cos, sin, out), x.numel() // max(width, 1), heads, width, pairs)
    return out


def rotated_unit(x_BTHC: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, eps: float) -> Tensor | None:
    """See `reference.rotated_unit`."""
    run, (heads, width) = function("rotated_unit", x_BTHC.dtype), x_BTHC.shape[-2:]
    if run is None or cos_BTR.shape[:-1] != x_BTHC.shape[:-2]:
        return None
    x, cos, sin = x_BTHC.contiguous(), _angles(cos_BTR, x_BTHC), _angles(sin_BTR, x_BTHC)
    out = torch.empty_like(x)
    run(*at(x, cos, sin, out), x.numel() // max(width, 1), heads, width, cos.shape[-1], eps)
    return out


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor | None:
    """See `reference.clamped_swiglu`."""
    run = function("clamped_swiglu", gate.dtype)
    if run is None or not are(gate.dtype, up):
        return None
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate, dtype=_wide(gate.dtype))
    run(*at(gate, up, out), gate.numel(), limit)
    return out


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
    run, high = function("expert_mlp", x_ND.dtype), _wide(x_ND.dtype)
    experts, inner, width = w1_EFD.shape
    if run is None or 3 * len(tokens_P) * inner * width > WORK:
        return None
    matrices = w1_EFD, w2_EDF, w3_EFD
    if not (are(x_ND.dtype, *matrices) and are(high, weights_P) and all(w.is_contiguous() for w in matrices)):
        return None
    out_ND = torch.zeros(x_ND.shape, dtype=high)
    room = x_ND.new_empty(8 * inner)
    inputs = x_ND.contiguous(), tokens_P.contiguous(), weights_P.contiguous(), *matrices, torch.tensor(counts)
    run(*at(*inputs, out_ND, room), experts, width, inner, limit)
    return out_ND


def linear(x: Tensor, weight_OI: Tensor) -> Tensor | None:
    """See `reference.linear`."""
    return _linear(x, weight_OI, 1, (*x.shape[:-1], weight_OI.shape[0]))


def grouped_linear(x_NGI: Tensor, weight_OI: Tensor, groups: int) -> Tensor | None:
    """See `reference.grouped_linear`."""
    return _linear(x_NGI, weight_OI, groups, (*x_NGI.shape[:-1], weight_OI.shape[0] // groups))


def _linear(x: Tensor, weight_OI: Tensor, groups: int, shape: tuple[int, ...]) -> Tensor | None:
    dtype, inputs = x.dtype, weight_OI.shape[1]
    run, tokens = function("grouped_linear", dtype), x.numel() // (groups * inputs)
    if run is None or tokens > ROWS or weight_OI.numel() > MATRIX or weight_OI.dtype != dtype:
        return None
    x, weight, out = x.contiguous(), weight_OI.contiguous(), x.new_empty(shape)
    run(x.data_ptr(), weight.data_ptr(), out.data_ptr(), tokens, groups, inputs, shape[-1])
    return out


def sort_by_expert(experts_TK: Tensor, n_experts: int) -> tuple[Tensor, Tensor] | None:
    """See `reference.sort_by_expert`."""
    run, pairs = function("sort_by_expert", experts_TK.dtype), experts_TK.numel()
    if run is None:
        return None
    experts, order = experts_TK.contiguous(), experts_TK.new_empty(pairs)
    counts = experts_TK.new_empty(n_experts)
    run(*at(experts, order, counts), pairs, n_experts)
    return order, counts


def pool_windows(
    values_BTK: Tensor, gates_BTK: Tensor, ape_MK: Tensor, last_BE: Tensor, position_BE: Tensor, overlap: bool
) -> Tensor | None:
    """See `reference.pool_windows`."""
    run = None if values_BTK.dtype == torch.bfloat16 else function("pool_windows", values_BTK.dtype)
    (rows, entries), (window, channels) = last_BE.shape, ape_MK.shape
    strides = values_BTK.stride()
    if run is None or not are(values_BTK.dtype, gates_BTK, ape_MK) or strides[2] != 1 or gates_BTK.stride() != strides:
        return None
    width = channels // 2 if overlap else channels
    out_BEC, room = values_BTK.new_empty(rows, entries, width), values_BTK.new_empty(2 * width)
    inputs = values_BTK, gates_BTK, ape_MK.contiguous(), last_BE.contiguous(), position_BE.contiguous()
    run(*at(*inputs, out_BEC, room), rows, entries, *strides[:2], window, channels, overlap)
    return out_BEC


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
    run, high = function("sparse_attention", q_BTHC.dtype), _wide(q_BTHC.dtype)
    rows, queries, heads, width = q_BTHC.shape
    most = visible.index_BTK.shape[-1] if isinstance(visible, Chosen) else entries_BEC.shape[1]
    if run is None or 2 * q_BTHC.numel() * (window + most) > WORK or not are(high, sink_H):
        return None
    if not (are(q_BTHC.dtype, keys_BNC, entries_BEC) and _is_rows(keys_BNC) and _is_rows(entries_BEC)):
        return None
    if isinstance(visible, Chosen):
        lists, listed = [visible.index_BTK.contiguous()] * 3, most if entries_BEC.shape[1] else 0
    else:
        lists, listed = [q_BTHC, visible.first_BT.contiguous(), visible.count_BT.contiguous()], -1
    q, sink, positions = q_BTHC.contiguous(), sink_H.contiguous(), positions_BT.contiguous()
    out = torch.empty_like(q)
    seen = window + most
    room = q.new_empty(seen * (heads + 2) + heads * width, dtype=high)
    sizes = rows, queries, keys_BNC.shape[1], heads, width, window, listed
    pointers = at(q, keys_BNC, entries_BEC, sink, positions, *lists, out, room)
    run(*pointers, *sizes, keys_BNC.stride(0), entries_BEC.stride(0), entries_BEC.shape[1])
    return out


def index_topk(q_BTHI: Tensor, keys_BEI: Tensor, weights_BTH: Tensor, visible: Prefix, k: int) -> Chosen | None:
    """See `reference.index_topk`; the order within a list may be another."""
    run = function("index_topk", q_BTHI.dtype)
    (rows, queries, heads, width), entries = q_BTHI.shape, keys_BEI.shape[1]
    if run is None or q_BTHI.numel() * entries > WORK or not are(q_BTHI.dtype, keys_BEI, weights_BTH):
        return None
    if not _is_rows(keys_BEI):
        return None
    k = min(k, entries)
    out_BTK = visible.first_BT.new_empty(rows, queries, k)
    scores, order = q_BTHI.new_empty(entries, dtype=_wide(q_BTHI.dtype)), out_BTK.new_empty(entries)
    inputs = q_BTHI.contiguous(), keys_BEI, weights_BTH.contiguous()
    seen = visible.first_BT.contiguous(), visible.count_BT.contiguous()
    run(*at(*inputs, *seen, out_BTK, scores, order), rows, queries, heads, width, keys_BEI.stride(0), k)
    return Chosen(out_BTK)


def at(*tensors: Tensor) -> list[int]:
    """Where tensors lie."""
    return [x.data_ptr() for x in tensors]


def are(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether all are of a dtype."""
    return all(x.dtype == dtype for x in tensors)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that one is computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _angles(x: Tensor, like: Tensor) -> Tensor:
    high = _wide(like.dtype)
    return (x if x.dtype == high else x.to(high)).contiguous()


def _is_rows(x_BNC: Tensor) -> bool:
    """Whether the vectors of a row follow each other."""
    return x_BNC.stride(2) == 1 and x_BNC.stride(1) == x_BNC.shape[2]
