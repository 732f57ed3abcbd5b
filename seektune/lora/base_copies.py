"""Weights of the base that PEFT stores in an adapter's file: they must be those of the base that is used here.

PEFT writes them for an adapted embedding or head, after `resize_token_embeddings`, and with `save_embedding_layers`,
and puts them into the model when it loads the adapter.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint import Shard
from seektune.lora.peft_names import released_module

TABLES = ("embed", "head")
"""Released names of the modules whose weights PEFT stores."""


@dataclass(frozen=True)
class BaseCopy:
    """A weight of the base in an adapter's file."""

    key: str
    """PEFT's name of the tensor."""
    weight: str
    """The released name."""
    values: Tensor


def base_copies(tensors: Mapping[str, Tensor]) -> list[BaseCopy]:
    """The copies of the embedding and the head among an adapter's tensors."""
    found = []
    for key, tensor in tensors.items():
        module = released_module(key.removesuffix(".weight").removesuffix(".base_layer"))
        if key.endswith(".weight") and module in TABLES:
            found.append(BaseCopy(key, f"{module}.weight", tensor))
    return found


def check_copies(copies: Iterable[BaseCopy], weight_of: Callable[[str], Shard | None], folder: Path) -> None:
    """Check that the copies in an adapter's file have the values of the base.

    Args:
        copies: of the file in `folder`.
        weight_of: this process's shard of a weight of the base, by released name; None if it holds none.
        folder: the adapter, for messages.

    Raises:
        ValueError: one has another shape or other values, so the adapter holds more than low-rank changes.
    """
    for copy in copies:
        shard = weight_of(copy.weight)
        if shard is None:
            continue
        if tuple(copy.values.shape) != shard.shape:
            raise ValueError(
                f"{folder} holds {copy.key} of shape {list(copy.values.shape)}, but the base has {list(shard.shape)}: "
                "the vocabulary was resized, which is not supported"
            )
        if not _agree(copy.values[shard.box], shard.tensor):
            raise ValueError(
                f"{folder} holds {copy.key} with other values than the base's {copy.weight}: it is more than low-rank "
                "changes of weights, which is not supported; save the adapter without embedding layers"
            )


def _agree(copy: Tensor, base: Tensor) -> bool:
    """Whether two tensors are equal, or one is the other rounded to its dtype."""
    here = copy.to(base.device)
    return torch.equal(here.to(base.dtype), base) or torch.equal(base.to(here.dtype), here)
