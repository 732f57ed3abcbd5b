"""Numerics of the model: with or without the rounding that serving applies to cached keys, index vectors and inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.kernels import FP4_GROUP, fake_quantize_fp4, fake_quantize_fp8, hadamard

KEY_GROUP = 64
"""Columns of a key that share an FP8 scale."""


@dataclass(frozen=True)
class Numerics:
    """Rounding of keys and entries (only the columns that are not rotated), and of index queries and keys."""

    keys: Callable[[Tensor], Tensor]
    index: Callable[[Tensor], Tensor]
    fp8_inputs: bool = False
    """Whether inputs of products with quantized weights are rounded, too."""

    def keep(self, key: Tensor, rope_dim: int) -> Tensor:
        """A rotated key as the cache stores it: all but its last `rope_dim` columns are rounded."""
        if self.keys is _unchanged:
            return key
        unrotated, rotated = key.split([key.shape[-1] - rope_dim, rope_dim], dim=-1)
        return torch.cat([self.keys(unrotated), rotated], dim=-1)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _index_fp4(x: Tensor) -> Tensor:
    return fake_quantize_fp4(hadamard(x), FP4_GROUP)


def _key_fp8(x: Tensor) -> Tensor:
    return fake_quantize_fp8(x, KEY_GROUP)


NUMERICS = {
    "plain": Numerics(keys=_unchanged, index=_unchanged),
    "released": Numerics(keys=_key_fp8, index=_index_fp4),
    "serving": Numerics(keys=_key_fp8, index=_index_fp4, fp8_inputs=True),
}
"""`plain`: no rounding. `released`: FP8 keys, Hadamard and FP4 in the indexer, straight-through gradients. `serving`:
also inputs of products with weights that stay FP4 and FP8, to FP8 per row and 128 columns."""


def numerics(name: str, index_head_dim: int) -> Numerics:
    """The numerics of that name.

    Raises:
        ValueError: an unknown name, or another one than `plain` with an index width that has no Hadamard transform.
    """
    if name not in NUMERICS:
        raise ValueError(f"numerics is {name!r}, but must be {' or '.join(NUMERICS)}")
    if name != "plain" and index_head_dim & (index_head_dim - 1):
        raise ValueError(f"numerics={name!r} needs index_head_dim to be a power of two, not {index_head_dim}")
    return NUMERICS[name]
