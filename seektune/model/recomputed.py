"""Activation checkpointing in which the recomputed forward has the context of the first."""

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from torch.utils.checkpoint import checkpoint, noop_context_fn


def recomputed(
    run: Callable[..., Any], *arguments: Any, drops: bool = False, context_fn: Callable[[], Any] = noop_context_fn
) -> Any:
    """`run(*arguments)`, computed again in backward in place of what it would save.

    Autograd runs the backward of a GPU in a thread of its own, which has none of the context variables of forward. So
    the mode of kernels is kept with the call.

    Args:
        run: computes tensors from tensors.
        arguments: of `run`.
        drops: whether the same random numbers are drawn again.
        context_fn: contexts of both runs, as in `torch.utils.checkpoint`.
    """
    in_context = copy_context().run
    return checkpoint(in_context, run, *arguments, use_reentrant=False, preserve_rng_state=drops, context_fn=context_fn)
