"""The compressor: a window of neighbouring tokens becomes one entry of the compressed key sequence.

Shapes: B rows, T tokens, E entries, M tokens of a window, D hidden width, C entry width.
"""

import torch
from torch import Tensor, nn

from seektune.model.config import CSA, DeepseekV4Config
from seektune.model.linear import WideLinear
from seektune.model.norm import RMSNorm
from seektune.model.rope import Rope
from seektune.sequence import Windows


class Compressor(nn.Module):
    """Softmax-weighted mean of a window, per channel (paper section 2.3; official `Compressor`).

    At ratio 4 windows overlap: an entry pools the previous window's tokens by the first C channels of value and gate,
    and its own window's tokens by the last C. Values, gates and softmax are fp32.
    """

    def __init__(
        self, config: DeepseekV4Config, ratio: int, width: int, device: torch.device | None, dtype: torch.dtype
    ):
        super().__init__()
        self.ratio, self.width = ratio, width
        self.overlap = ratio == CSA
        channels = width * (2 if self.overlap else 1)
        self.wkv = WideLinear(config.hidden_size, channels, bias=False, device=device, dtype=dtype)
        self.wgate = WideLinear(config.hidden_size, channels, bias=False, device=device, dtype=dtype)
        self.ape = nn.Parameter(torch.empty(ratio, channels, device=device, dtype=torch.float32))
        self.norm = RMSNorm(width, config.rms_norm_eps, device, dtype)
        self.rope = Rope.of_layer(config, ratio)

    def forward(self, x_BTD: Tensor, windows: Windows) -> Tensor:
        """Rotated entries `[B, E, C]`; slots without a window hold finite values that nobody sees."""
        values, gates = self.wkv(x_BTD), self.wgate(x_BTD)
        rows = torch.arange(values.shape[0], device=values.device)[:, None, None]
        tokens_BEM = windows.last_BE.unsqueeze(-1) - torch.arange(self.ratio - 1, -1, -1, device=values.device)
        values_BEMC = values[rows, tokens_BEM]
        gates_BEMC = gates[rows, tokens_BEM] + self.ape
        if self.overlap:
            before = (tokens_BEM - self.ratio).clamp(min=0)
            absent = (windows.position_BE == 0)[..., None, None]
            earlier = (gates[rows, before] + self.ape)[..., : self.width].masked_fill(absent, -torch.inf)
            gates_BEMC = torch.cat([earlier, gates_BEMC[..., self.width :]], dim=2)
            values_BEMC = torch.cat([values[rows, before][..., : self.width], values_BEMC[..., self.width :]], dim=2)
        entries = (gates_BEMC.softmax(dim=2) * values_BEMC).sum(dim=2)
        return self.rope(windows.position_BE)(self.norm(entries.to(x_BTD.dtype)))
