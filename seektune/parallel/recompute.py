"""Activation checkpointing: wraps blocks so that backward recomputes them."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from seektune.model.dspark import DSparkStage
from seektune.model.recomputed import recomputed
from seektune.model.transformer import TransformerPart

KEPT = (torch.ops.aten.mm.default, torch.ops._c10d_functional.all_to_all_single.default)
"""Operations whose results `selective` keeps: products with weights, and all-to-alls between experts."""


def recompute_blocks(part: TransformerPart, mode: Literal["none", "block", "selective"], drops: bool = False) -> None:
    """Let backward recompute each block's forward: all of it, or everything except its large products.

    Where dropout `drops` something, the same is dropped again. DSpark stages are left as they are: the few tokens of
    their drafts are read a chunk at a time.
    """
    if mode == "none":
        return
    keeping: dict[str, Any] = {}
    if mode == "selective":
        keeping["context_fn"] = partial(create_selective_checkpoint_contexts, _choose)
    for block in part.blocks():
        if isinstance(block, DSparkStage):
            continue
        forward: Callable[..., Any] = block.forward
        again = partial(recomputed, forward, drops=drops, **keeping)
        setattr(block, "forward", again)  # noqa: B010 - a method is replaced on purpose


def _choose(_context: Any, operation: Any, *_arguments: Any, **_names: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
