"""Validate the model's inputs: shapes, dtypes and ranges of ids, labels and document numbers.

Shapes: B rows, T tokens.
"""

import torch
from torch import Tensor

from seektune.model.config import DeepseekV4Config
from seektune.sequence import IGNORE_INDEX

INTEGERS = (torch.int64, torch.int32, torch.int16)
"""Dtypes of ids."""


def check_inputs(
    config: DeepseekV4Config,
    input_ids: Tensor,
    labels: Tensor | None = None,
    documents: Tensor | None = None,
    mtp: bool = False,
) -> None:
    """Check the inputs of a forward pass; `mtp` if it runs the MTP block.

    Raises:
        ValueError: a dtype or shape is wrong, an id or label is outside the vocabulary, or there is no MTP block.
    """
    others = {"labels": labels, "documents": documents}
    given = {name: tensor for name, tensor in others.items() if tensor is not None}
    for name, tensor in {"input_ids": input_ids, **given}.items():
        if tensor.dtype not in INTEGERS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} must be integers (int64), not {kind}")
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids must have shape [rows, tokens] and not be empty, not {list(input_ids.shape)}")
    vocab_size = config.vocab_size
    low = int(input_ids.min())
    high = int(input_ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"input_ids span {low} to {high}, outside the vocabulary of {vocab_size} ids")
    for name, tensor in given.items():
        if tensor.shape != input_ids.shape:
            raise ValueError(f"{name} have shape {list(tensor.shape)}, input_ids {list(input_ids.shape)}")
    if labels is not None and _has_bad_label(labels, vocab_size):
        raise ValueError(f"labels must be {IGNORE_INDEX} (not taught) or ids below {vocab_size}")
    if mtp and config.mtp_layers == 0:
        raise ValueError(f"this model has no MTP block ({config.why_no_mtp})")


def count_tokens(documents_BT: Tensor) -> list[int]:
    """Number of tokens of each row; padding may follow them.

    Raises:
        ValueError: there is padding elsewhere, or a second document.
    """
    real_BT = documents_BT != 0
    counts_B = real_BT.sum(dim=1)
    expected_BT = torch.arange(documents_BT.shape[1], device=documents_BT.device) < counts_B[:, None]
    if not torch.equal(documents_BT.bool(), expected_BT) or int(documents_BT.max()) > 1 or int(documents_BT.min()) < 0:
        raise ValueError(
            "with a cache, documents must be 1 for a row's tokens, then 0 for padding: a row holds one sequence"
        )
    return [int(count) for count in counts_B]


def _has_bad_label(labels_BT: Tensor, vocab_size: int) -> bool:
    negative_BT = (labels_BT < 0) & (labels_BT != IGNORE_INDEX)
    return bool((negative_BT | (labels_BT >= vocab_size)).any())
