"""What is recomputed in backward is what forward computed, also in the thread in which autograd serves a GPU."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
import torch
from torch import Tensor

from seektune.kernels import batch_invariant_kernels, linear, rms_norm
from seektune.model import indexer_loss
from seektune.model.gate import RoutingLedger
from seektune.model.indexer_loss import IndexerTraining
from seektune.model.recomputed import recomputed
from seektune.parallel.recompute import recompute_blocks

Mode = Literal["none", "block", "selective"]
SMALL = {"num_hidden_layers": 2, "compress_ratios": [0, 4, 0], "num_nextn_predict_layers": 1}


def backward_elsewhere(loss: Tensor) -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(loss.backward).result()


def gradients(toy_model, mode: Mode) -> list[Tensor]:
    model = toy_model(dtype=torch.float32, **SMALL)
    recompute_blocks(model, mode)
    tokens = torch.arange(12)[None]
    with batch_invariant_kernels():
        backward_elsewhere(model(tokens, labels=tokens).loss)
    return [x.grad for x in model.parameters() if x.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["block", "selective"])
def test_blocks_are_recomputed_with_the_kernels_of_their_forward(toy_model, mode: Mode) -> None:
    for found, expected in zip(gradients(toy_model, mode), gradients(toy_model, "none"), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["block", "selective"])
def test_recall_of_indexers_is_measured_once(toy_model, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    measure = indexer_loss.index_recall
    monkeypatch.setattr(indexer_loss, "index_recall", lambda *arguments: calls.append(1) or measure(*arguments))
    found = []
    for chosen in ("none", mode):
        model = toy_model(**SMALL)
        recompute_blocks(model, chosen)
        ledger = RoutingLedger(indexers=IndexerTraining(tokens=64, warmup=False))
        tokens = torch.arange(64)[None]
        model(tokens, labels=tokens, ledger=ledger).loss.backward()
        trained = [x.grad for x in model.parameters() if x.grad is not None]
        recall = ledger.indexer_losses[1].recall
        assert recall is not None
        found.append([*trained, recall])
    assert len(calls) == 2
    for recomputed_part, expected in zip(*found, strict=True):
        assert torch.equal(recomputed_part, expected)


def test_a_function_is_recomputed_with_its_kernels() -> None:
    weight = torch.randn(6, 6, requires_grad=True)
    normalized = []

    def run(x: Tensor) -> Tensor:
        normalized.append(rms_norm(x, torch.ones(6), 1e-6))
        return linear(normalized[-1], weight)

    with batch_invariant_kernels():
        loss = recomputed(run, torch.randn(40, 6)).sum()
        backward_elsewhere(loss)
    assert len(normalized) == 2
    assert torch.equal(*normalized)
