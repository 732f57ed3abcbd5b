"""The indexer's top-k: the compressed entries that each query of a CSA layer attends to.

Shapes: B rows, T tokens, Q queries of a chunk, H index heads, I index width, E entries, K chosen entries.
"""

import torch
from torch import Tensor

from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.sparse_attention import CHUNK, Chosen, Prefix


@torch.no_grad()
def index_topk(q_BTHI: Tensor, keys_BEI: Tensor, weights_BTH: Tensor, visible: Prefix, k: int) -> Chosen:
    """The `k` visible entries j with the largest `sum_h w_h relu(q_h · key_j)`, `[B, T, K]`; -1 if fewer are visible.

    Ties go to the earlier entry. Paper section 2.3 (lightning indexer). Scores are fp32 and computed for one chunk of
    queries at a time. No gradient.
    """
    keys_BIE = upcast(keys_BEI).mT
    chosen = [visible.first_BT.new_empty(len(q_BTHI), 0, min(k, keys_BEI.shape[1]))]
    for start in range(0, q_BTHI.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        q_BQHI = upcast(q_BTHI[:, part])
        scores_BQHE = (q_BQHI.flatten(1, 2) @ keys_BIE).relu().unflatten(1, q_BQHI.shape[1:3])
        scores_BQE = (upcast(weights_BTH[:, part]).unsqueeze(2) @ scores_BQHE).squeeze(2)
        _, seen = visible.select(keys_BEI, part)
        # stable, as many scores are exactly 0, and a document must choose the same entries alone and in a packed row
        values, index = scores_BQE.masked_fill(~seen, -torch.inf).sort(dim=-1, descending=True, stable=True)
        chosen.append(torch.where(values == -torch.inf, -1, index)[..., :k])
    return Chosen(torch.cat(chosen, dim=1))
