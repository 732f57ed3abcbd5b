"""Pool windows of adjacent tokens into compressed entries, with a softmax per channel.

Shapes: B rows, T tokens, E entries, M tokens of a window, C channels of an entry, K channels of values and gates:
C, or 2C where windows overlap.
"""

import torch
from torch import Tensor


def pool_windows(
    values_BTK: Tensor, gates_BTK: Tensor, ape_MK: Tensor, last_BE: Tensor, position_BE: Tensor, overlap: bool
) -> Tensor:
    """Entries `[B, E, C]` in the inputs' dtype (paper section 2.3; official `Compressor`).

    `last` is the row index of a window's last token, `position` its first token's position in the document. With
    `overlap` an entry also pools the previous window: that one with the first C channels, its own with the last C. A
    document's first window has no previous one.
    """
    window = ape_MK.shape[0]
    rows = torch.arange(values_BTK.shape[0], device=last_BE.device)[:, None, None]
    tokens_BEM = last_BE.unsqueeze(-1) - torch.arange(window - 1, -1, -1, device=last_BE.device)
    values = values_BTK[rows, tokens_BEM]
    gates = gates_BTK[rows, tokens_BEM] + ape_MK
    if overlap:
        width = ape_MK.shape[1] // 2
        before = (tokens_BEM - window).clamp(min=0)
        absent = (position_BE == 0)[..., None, None]
        earlier = (gates_BTK[rows, before] + ape_MK)[..., :width].masked_fill(absent, -torch.inf)
        gates = torch.cat([earlier, gates[..., width:]], dim=2)
        values = torch.cat([values_BTK[rows, before][..., :width], values[..., width:]], dim=2)
    return (gates.softmax(dim=2) * values).sum(dim=2)
