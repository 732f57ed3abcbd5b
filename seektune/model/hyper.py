"""Manifold-constrained hyper-connections (mHC): residual streams with a small router that reads, mixes and writes them.

Shapes: B rows, T tokens, N tokens of all rows, S streams, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from seektune.kernels import hyper_collect, hyper_read, hyper_write
from seektune.model.config import DeepseekV4Config


class StreamRouter(nn.Module):
    """Linear map of all streams of a token, normalized without a weight; parameters and results are fp32."""

    def __init__(self, config: DeepseekV4Config, outputs: int, scales: int, device: torch.device | None):
        super().__init__()
        self.eps = config.hc_eps
        self.norm_eps = config.rms_norm_eps
        inputs = config.hc_mult * config.hidden_size
        self.fn = nn.Parameter(torch.empty(outputs, inputs, device=device, dtype=torch.float32))
        self.base = nn.Parameter(torch.empty(outputs, device=device, dtype=torch.float32))
        self.scale = nn.Parameter(torch.empty(scales, device=device, dtype=torch.float32))


class HyperConnection(StreamRouter):
    """The residual connection around a sublayer (paper section 2.2; official `hc_pre` and `hc_post`)."""

    def __init__(self, config: DeepseekV4Config, device: torch.device | None):
        super().__init__(config, outputs=config.hc_mult * (2 + config.hc_mult), scales=3, device=device)
        self.iterations = config.hc_sinkhorn_iters

    def forward(self, streams_BTSD: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Read one vector from the streams, run the branch on it, and add its output to the mixed streams."""
        numbers = self.iterations, self.eps, self.norm_eps
        x_BTD, write_BTS, mix_BTSS = hyper_read(streams_BTSD, self.fn, self.base, self.scale, *numbers)
        return hyper_write(streams_BTSD, branch(x_BTD), write_BTS, mix_BTSS)


class HyperHead(StreamRouter):
    """The last read: from the streams to the input of the final norm (official `hc_head`)."""

    def __init__(self, config: DeepseekV4Config, device: torch.device | None):
        super().__init__(config, outputs=config.hc_mult, scales=1, device=device)

    def forward(self, streams_BTSD: Tensor) -> Tensor:
        """`[B, T, D]`."""
        return hyper_collect(streams_BTSD, self.fn, self.base, self.scale, self.eps, self.norm_eps)
