"""Rotary position embedding of the last `qk_rope_head_dim` columns, in interleaved pairs, with angles per layer.

Shapes: B rows, T tokens, H heads, C head width, R rotated pairs.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from seektune.kernels import rotate
from seektune.model.config import SLIDING, DeepseekV4Config, RopeScaling


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of positions, fp32 `[..., R]`."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate the last 2R columns of `x` `[..., C]` in fp32 and round to its dtype; pair i is columns (2i, 2i+1)."""
        return rotate(x, self.cos, self.sin)

    @cached_property
    def inverse(self) -> "Rotation":
        """The rotation back."""
        return Rotation(self.cos, -self.sin)

    @cached_property
    def over_heads(self) -> "Rotation":
        """The same rotation for every head: `[B, T, R]` becomes `[B, T, 1, R]`."""
        return Rotation(self.cos.unsqueeze(-2), self.sin.unsqueeze(-2))


@dataclass(frozen=True)
class Rope:
    """Angles by position: plain RoPE, or YaRN with `scaling`; the softmax scale is unchanged (no mscale)."""

    dim: int
    theta: float
    scaling: RopeScaling | None

    @classmethod
    def of_layer(cls, config: DeepseekV4Config, ratio: int) -> "Rope":
        """The angles of a layer's queries, window keys, entries and indexer, and of rotating its output back."""
        if ratio == SLIDING:
            return cls(config.qk_rope_head_dim, config.rope_theta, None)
        return cls(config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling)

    def __call__(self, positions: Tensor) -> Rotation:
        """The rotation for int64 positions of any shape."""
        # a fake tensor's frequencies are fake, so they are not remembered
        frequencies = _frequencies if type(positions) is Tensor else Rope.frequencies
        angles = positions.float().unsqueeze(-1) * frequencies(self, positions.device)
        return Rotation(angles.cos(), angles.sin())

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """Radians per position of each pair, fp32 `[R]` (official `precompute_freqs_cis`)."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float32, device=device) / self.dim
        frequencies = 1.0 / (self.theta**exponents)
        if self.scaling is None:
            return frequencies
        low, high = (self._pair_of(turns) for turns in (self.scaling.beta_fast, self.scaling.beta_slow))
        low = max(math.floor(low), 0)
        high = min(math.ceil(high), self.dim - 1)
        ramp = (torch.arange(self.dim // 2, dtype=torch.float32, device=device) - low) / max(high - low, 1e-3)
        unscaled = 1 - ramp.clamp(0, 1)
        return frequencies * unscaled + frequencies / self.scaling.factor * (1 - unscaled)

    def _pair_of(self, turns: float) -> float:
        """The pair that makes `turns` full turns over the original context."""
        assert self.scaling is not None
        context = self.scaling.original_max_position_embeddings
        return self.dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


@cache
def _frequencies(rope: Rope, device: torch.device) -> Tensor:
    """Those of a rope, made once for a device: a decode step asks for them at every layer."""
    with torch.inference_mode(False):
        return rope.frequencies(device)
