"""FlashMLA's sparse prefill as `sparse_attention`: forward only, bf16, 512 channels, 64 or 128 heads.

Shapes: B rows, T queries, N keys, E entries, H heads, C channels, W window, K entries of a query.
"""

from importlib import import_module

import torch
from torch import Tensor

from seektune.kernels.reference.sparse_attention import Chosen, Visible

PACKAGE = "flash_mla"
WIDTH = 512
HEADS = (64, 128)
ALIGNED = 128
"""The number of indices of a query is a multiple of this."""
MOST = 4096
"""Most indices of a query; more were not seen in FlashMLA's tests of correctness."""


def supports(
    q_BTHC: Tensor,
    keys_BNC: Tensor,
    entries_BEC: Tensor,
    sink_H: Tensor,
    positions_BT: Tensor,
    window: int,
    visible: Visible,
) -> bool:
    """Whether the kernel takes these arguments: no gradient is asked for, as it has none."""
    inputs = q_BTHC, keys_BNC, entries_BEC, sink_H
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    slots = visible.index_BTK.shape[2] if isinstance(visible, Chosen) else entries_BEC.shape[1]
    fits = q_BTHC.shape[3] == WIDTH and q_BTHC.shape[2] in HEADS and 0 < window + slots <= MOST
    bf16 = all(x.dtype == torch.bfloat16 for x in inputs[:3])
    return fits and bf16 and not learns and q_BTHC.shape[1] > 0


def trains(*arguments: object) -> bool:
    """Whether the kernel has all gradients that training needs."""
    return False


def sparse_attention(
    q_BTHC: Tensor,
    keys_BNC: Tensor,
    entries_BEC: Tensor,
    sink_H: Tensor,
    positions_BT: Tensor,
    window: int,
    visible: Visible,
) -> Tensor:
    """See `reference.sparse_attention`; keys and entries become one list of keys, and what is visible indices of it."""
    rows, length, heads, width = q_BTHC.shape
    keys = torch.cat([keys_BNC, entries_BEC], dim=1)
    near = _window(positions_BT, keys_BNC.shape[1] - length, window)
    far = _entries(visible, entries_BEC.shape[1])
    far = torch.where(far >= 0, far + keys_BNC.shape[1], -1)
    index_BTK = torch.cat([near, far], dim=-1)
    first_B = torch.arange(rows, device=keys.device)[:, None, None] * keys.shape[1]
    index_BTK = torch.where(index_BTK >= 0, index_BTK + first_B, -1)
    index_BTK = torch.nn.functional.pad(index_BTK, (0, -index_BTK.shape[-1] % ALIGNED), value=-1)
    out: Tensor = import_module(PACKAGE).flash_mla_sparse_fwd(
        q_BTHC.reshape(rows * length, heads, width).contiguous(),
        keys.reshape(-1, 1, width).contiguous(),
        index_BTK.reshape(rows * length, 1, -1).int().contiguous(),
        width**-0.5,
        d_v=width,
        attn_sink=sink_H.float().contiguous(),
    )[0]
    return out.view(rows, length, heads, width)


def _window(positions_BT: Tensor, earlier: int, window: int) -> Tensor:
    """Indices of the window's keys, the query's own first, `[B, T, W]`; -1 for those before the document."""
    behind = torch.arange(window, device=positions_BT.device)
    own_T = torch.arange(positions_BT.shape[1], device=positions_BT.device) + earlier
    index_TW = own_T[:, None] - behind
    return torch.where((behind <= positions_BT[..., None]) & (index_TW >= 0), index_TW, -1)


def _entries(visible: Visible, entries: int) -> Tensor:
    """Indices of the visible entries, `[B, T, K]`; -1 for none."""
    if isinstance(visible, Chosen):
        return visible.index_BTK
    slot = torch.arange(entries, device=visible.first_BT.device)
    return torch.where(slot < visible.count_BT[..., None], visible.first_BT[..., None] + slot, -1)
