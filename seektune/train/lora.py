"""Adapters for training: which of a model's weights get one, and proof that nothing else moves."""

import hashlib
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seektune.model.adapters import AdapterShape, adapt, base_state, matching, start
from seektune.train.config import LoraConfig

BAND = 2**20
"""Words of a tensor that are summed at a time."""


def add_adapters(model: nn.Module, config: LoraConfig, mtp: bool, seed: int) -> list[str]:
    """Freeze a model and put fresh adapters on what `config.targets` name; returns those names.

    Args:
        model: with its weights.
        config: the section of a recipe.
        mtp: whether the MTP block is trained; if not, it gets no adapters.
        seed: decides A; B starts at zero.

    Raises:
        ValueError: a target matches nothing, or cannot be adapted so.
    """
    shape = AdapterShape(
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        rslora=config.rslora,
        dora=config.dora,
        shared_a=config.shared_a,
        merge_into=config.merge_into,
    )
    try:
        names = matching(model, config.targets)
    except ValueError as error:
        raise ValueError(f"lora.targets: {error}") from None
    names = [name for name in names if mtp or not name.startswith("mtp.")]
    adapt(model, names, shape)
    if not next(model.parameters()).is_meta:
        start(model, seed)
    return names


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """A digest of every byte that adapters leave alone; equal before and after training, or something moved.

    Streamed weights are not in memory and not in it: their files are only read.
    """
    return _digest({name: tensor for name, tensor in base_state(model).items() if not tensor.is_meta})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {_sums(tensor)}\n".encode())
    return digest.hexdigest()


def _sums(tensor: Tensor) -> tuple[int, int]:
    """Sum of the 64-bit words and sum of each times its odd place, both modulo 2^64: as fast as reading."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    total = weighted = torch.zeros((), dtype=torch.int64, device=data.device)
    for begin in range(0, len(data), 8 * BAND):
        part = data[begin : begin + 8 * BAND]
        # words need whole numbers of eight bytes, at an address that is one
        ragged = len(part) % 8 or part.storage_offset() % 8
        words = (F.pad(part, (0, -len(part) % 8)).clone() if ragged else part).view(torch.int64)
        places = torch.arange(begin, begin + len(words), device=data.device) * 2 + 1
        total, weighted = total + words.sum(), weighted + (words * places).sum()
    return int(total), int(weighted)
