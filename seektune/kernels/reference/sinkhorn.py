"""Sinkhorn: project the mixing weights of hyper-connections towards doubly stochastic matrices."""

from torch import Tensor


def sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """Sinkhorn on `[..., S, S]` (source stream, target stream), in the input's dtype.

    The softmax over targets is the first row pass; then a column pass, then `iterations - 1` times rows and columns:
    `iterations` passes of each, ending with columns (paper section 2.2; official kernel `hc_split_sinkhorn`).
    """
    size = logits.shape[-1]
    # tokens last, [S, S, N], so that the short sums are vectorized over tokens
    mix = logits.reshape(-1, size, size).permute(1, 2, 0).contiguous()
    mix = mix.softmax(dim=1) + eps
    mix = mix / (mix.sum(dim=0, keepdim=True) + eps)
    for _ in range(iterations - 1):
        mix = mix / (mix.sum(dim=1, keepdim=True) + eps)
        mix = mix / (mix.sum(dim=0, keepdim=True) + eps)
    return mix.permute(2, 0, 1).contiguous().view(logits.shape)
