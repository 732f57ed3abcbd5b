"""Manifold-constrained hyper-connections: several residual streams that a small router reads, mixes and writes.

Shapes: B rows, T tokens, S streams, D width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seektune.kernels import sinkhorn, upcast
from seektune.model.config import DeepseekV4Config


class StreamRouter(nn.Module):
    """Linear map of all streams of a token, normalised without weight; its parameters and results are fp32."""

    def __init__(self, config: DeepseekV4Config, outputs: int, scales: int, device: torch.device | None):
        super().__init__()
        self.streams, self.eps, self.norm_eps = config.hc_mult, config.hc_eps, config.rms_norm_eps
        inputs = config.hc_mult * config.hidden_size
        self.fn = nn.Parameter(torch.empty(outputs, inputs, device=device, dtype=torch.float32))
        self.base = nn.Parameter(torch.empty(outputs, device=device, dtype=torch.float32))
        self.scale = nn.Parameter(torch.empty(scales, device=device, dtype=torch.float32))

    def route(self, streams_BTSD: Tensor) -> Tensor:
        """Router outputs `[B, T, outputs]` before scale and base; normalising after the product moves less memory."""
        x = upcast(streams_BTSD.flatten(-2))
        return F.linear(x, self.fn) * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.norm_eps)

    def read(self, streams_BTSD: Tensor, logits_BTS: Tensor) -> Tensor:
        """Mix the streams into one vector `[B, T, D]` by `sigmoid(logits) + eps`, rounded once to their dtype."""
        weights = logits_BTS.sigmoid() + self.eps
        return (weights.unsqueeze(-1) * upcast(streams_BTSD)).sum(dim=-2).to(streams_BTSD.dtype)


class HyperConnection(StreamRouter):
    """The residual connection around a branch (paper section 2.2; official `hc_pre` and `hc_post`)."""

    def __init__(self, config: DeepseekV4Config, device: torch.device | None):
        super().__init__(config, outputs=config.hc_mult * (2 + config.hc_mult), scales=3, device=device)
        self.iterations = config.hc_sinkhorn_iters

    def forward(self, streams_BTSD: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Read one vector from the streams, run the branch on it, write the result to the mixed streams."""
        n = self.streams
        read, write, mix = self.route(streams_BTSD).split([n, n, n * n], dim=-1)
        read_base, write_base, mix_base = self.base.split([n, n, n * n])
        y_BTD = branch(self.read(streams_BTSD, self.scale[0] * read + read_base))
        write = 2 * (self.scale[1] * write + write_base).sigmoid()
        # mix[j, k]: how much of source stream j flows into target stream k
        mix = sinkhorn((self.scale[2] * mix + mix_base).unflatten(-1, (n, n)), self.iterations, self.eps)
        mixed = mix.mT @ upcast(streams_BTSD)
        return (write.unsqueeze(-1) * upcast(y_BTD).unsqueeze(-2) + mixed).to(streams_BTSD.dtype)


class HyperHead(StreamRouter):
    """The last read: streams into the vector that the final norm sees (official `hc_head`)."""

    def __init__(self, config: DeepseekV4Config, device: torch.device | None):
        super().__init__(config, outputs=config.hc_mult, scales=1, device=device)

    def forward(self, streams_BTSD: Tensor) -> Tensor:
        """`[B, T, D]`."""
        return self.read(streams_BTSD, self.scale * self.route(streams_BTSD) + self.base)
