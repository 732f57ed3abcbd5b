"""Times the parts of a step, forward and backward, by stamps that the gradient passes in reverse."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from seektune.model.attention import Attention
from seektune.model.compressor import Compressor
from seektune.model.gate import Gate
from seektune.model.hyper import HyperConnection, HyperHead
from seektune.model.indexer import Indexer
from seektune.model.moe import MoE
from seektune.model.norm import RMSNorm

PARTS: tuple[tuple[type[nn.Module], str], ...] = (
    (HyperConnection, "mHC"),
    (HyperHead, "mHC"),
    (Attention, "attention"),
    (Compressor, "compressor"),
    (Indexer, "indexer"),
    (MoE, "experts"),
    (Gate, "gate"),
    (RMSNorm, "norms"),
)
"""Whose time counts as what; time inside a module of another kind counts as that one's."""


@dataclass
class Clock:
    """Adds the time between two turns to the part that had it."""

    seconds: Counter[str] = field(default_factory=Counter)
    part: str = "head and loss"
    since: float = 0.0

    def turn(self, part: str) -> None:
        """From now on time belongs to `part`."""
        now = process_time()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now


class _Stamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, clock, before, after):  # type: ignore[no-untyped-def]
        ctx.turn = clock, before
        clock.turn(after)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        clock, before = ctx.turn
        clock.turn(before)
        return grad, None, None, None


@contextmanager
def clocked(model: nn.Module, clock: Clock) -> Iterator[None]:
    """Stamp the way into and out of every module of PARTS."""
    hooks = []
    for module in model.modules():
        for kind, part in PARTS:
            if isinstance(module, kind):
                outer: list[str] = []
                hooks.append(module.register_forward_pre_hook(_enter(clock, part, outer)))
                hooks.append(module.register_forward_hook(_leave(clock, part, outer)))
    clock.since = process_time()
    yield
    for hook in hooks:
        hook.remove()


def _enter(clock: Clock, part: str, outer: list[str]):  # type: ignore[no-untyped-def]
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        outer.append(clock.part)
        return _stamp(inputs[0], clock, clock.part, part), *inputs[1:]

    return hook


def _leave(clock: Clock, part: str, outer: list[str]):  # type: ignore[no-untyped-def]
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        after = outer.pop()
        if isinstance(output, Tensor):
            return _stamp(output, clock, part, after)
        if is_dataclass(output) and isinstance(module, Gate):
            return replace(output, weights_NK=_stamp(output.weights_NK, clock, part, after))
        clock.turn(after)
        return output

    return hook


def _stamp(x: Tensor, clock: Clock, before: str, after: str) -> Tensor:
    stamped: Tensor = _Stamp.apply(x, clock, before, after)
    return stamped
