"""The compressor: pools a window of adjacent tokens into one entry of the compressed key sequence.

Shapes: B rows, T tokens, E entries, D hidden width, C entry width.
"""

import torch
from torch import Tensor, nn

from seektune.kernels import pool_windows
from seektune.model.config import CSA, DeepseekV4Config
from seektune.model.linear import WideLinear
from seektune.model.norm import RMSNorm
from seektune.model.rope import Rope
from seektune.sequence import Windows


class Compressor(nn.Module):
    """Softmax-weighted mean of a window, per channel (paper section 2.3; official `Compressor`).

    At ratio 4, windows overlap: an entry pools the previous window's tokens with the first C channels of value and
    gate, and its own window's tokens with the last C. Values, gates and softmax are fp32.
    """

    def __init__(
        self, config: DeepseekV4Config, ratio: int, width: int, device: torch.device | None, dtype: torch.dtype
    ):
        super().__init__()
        self.ratio = ratio
        self.width = width
        self.overlap = ratio == CSA
        channels = width * (2 if self.overlap else 1)
        self.wkv = WideLinear(config.hidden_size, channels, device, dtype)
        self.wgate = WideLinear(config.hidden_size, channels, device, dtype)
        self.ape = nn.Parameter(torch.empty(ratio, channels, device=device, dtype=torch.float32))
        self.norm = RMSNorm(width, config.rms_norm_eps, device, dtype)
        self.rope = Rope.of_layer(config, ratio)

    def forward(self, x_BTD: Tensor, windows: Windows) -> Tensor:
        """Rotated entries of the windows, `[B, E, C]`; slots without a window hold finite values that no query sees."""
        both = torch.cat([self.wkv(x_BTD), self.wgate(x_BTD)], dim=-1)
        both = windows.preceded(both, self.ratio * (1 + self.overlap) - 1)
        if windows.idle:
            return x_BTD.new_empty(x_BTD.shape[0], 0, self.width)
        values, gates = both.chunk(2, dim=-1)
        last_BE = windows.last_BE + (both.shape[1] - x_BTD.shape[1])
        entries = pool_windows(values, gates, self.ape, last_BE, windows.position_BE, self.overlap)
        return self.rope(windows.position_BE)(self.norm(entries.to(x_BTD.dtype)))
