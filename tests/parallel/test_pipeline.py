"""Micro-batches in a loop: what one of them made is gone when the next begins."""

import weakref

import torch
from torch import Tensor

from seektune.parallel.pipeline import SequentialRunner
from seektune.sequence import Batch


def test_the_graph_of_a_loss_does_not_outlive_its_micro_batch() -> None:
    weight = torch.ones(3, requires_grad=True)
    losses: list[weakref.ref[Tensor]] = []

    def stage(*_: object, **__: object) -> Tensor:
        assert all(loss() is None for loss in losses), "a head's gradient would be held twice"
        loss = weight.square().sum()
        losses.append(weakref.ref(loss))
        return loss

    tokens = torch.ones(1, 4, dtype=torch.int64)
    SequentialRunner(stage).train([Batch(tokens, tokens, tokens)] * 3, None, lambda phase: None)
    assert len(losses) == 3
    assert weight.grad is not None
    assert weight.grad.tolist() == [6.0] * 3
