"""The loss of indexers, compared with loops over queries and heads; in packed rows, and in warm-ups."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seektune.kernels import Chosen, Prefix, index_topk
from seektune.model.attention import Attention
from seektune.model.fake_quantized import fake_quantize_modules
from seektune.model.flops import SAMPLED
from seektune.model.gate import RoutingLedger
from seektune.model.indexer import INDEXERS
from seektune.model.indexer_loss import IndexerLoss, IndexerTraining, IndexVectors
from seektune.model.step_loss import INDEXER_LOSS, StepLoss
from seektune.parallel.model import Outcome, ParallelModel
from seektune.run.indexers import indexer_trainer
from seektune.sequence import Batch, SequenceLayout
from tests.largest_tensor import LargestTensor

WINDOW = 12
TOPK = 5
DOCUMENTS = torch.tensor([[1] * 70 + [0] * 3 + [2] * 3 + [3] * 64, [4] * 140])


@dataclass(frozen=True)
class Made:
    """Random inputs of an indexer's loss in fp64."""

    vectors: IndexVectors
    q: Tensor
    keys: Tensor
    entries: Tensor
    sink: Tensor
    layout: SequenceLayout
    everything: Prefix

    def compute(self, visible: Any) -> IndexerLoss:
        loss = IndexerLoss(IndexerTraining(tokens=100, warmup=False))
        seen = self.q, self.keys, self.entries, self.sink
        loss.compute(self.vectors, *seen, WINDOW, self.everything, visible, TOPK, self.layout)
        return loss


@pytest.fixture
def made() -> Made:
    layout = SequenceLayout.from_documents(DOCUMENTS)
    windows = layout.windows(4)
    rows, length = DOCUMENTS.shape
    entries = windows.last_BE.shape[1]

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).requires_grad_()

    vectors = IndexVectors(leaf(rows, length, 3, 6), leaf(rows, entries, 6), leaf(rows, length, 3))
    attention = leaf(rows, length, 2, 8), leaf(rows, length, 8), leaf(rows, entries, 8), leaf(2)
    return Made(vectors, *attention, layout, Prefix(windows.first_BT, windows.count_BT))


def attention_mass(made: Made, row: int, t: int, entries: list[int]) -> Tensor:
    """Probabilities of entries for one query, in one softmax over window, entries and sink, summed over heads."""
    near = made.keys[row, t - min(int(made.layout.positions[row, t]), WINDOW - 1) : t + 1]
    keys = torch.cat([near, made.entries[row, entries]])
    logits = torch.cat([made.q[row, t] @ keys.T * 8**-0.5, made.sink[:, None]], dim=1)
    return logits.softmax(dim=1)[:, len(near) : -1].sum(dim=0).detach()


def index_scores(made: Made, row: int, t: int, entries: list[int]) -> Tensor:
    each = (made.vectors.q_BTHI[row, t] @ made.vectors.keys_BEI[row, entries].T).relu()
    return made.vectors.weights_BTH[row, t] @ each


def by_loops(made: Made, seen: list[list[list[int]]]) -> Tensor:
    """The divergence of all queries, over 100 tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for row, queries in enumerate(seen):
        for t, entries in enumerate(queries):
            if entries:
                target = attention_mass(made, row, t, entries)
                target = target / target.sum()
                total = total + (target * (target.log() - index_scores(made, row, t, entries).log_softmax(0))).sum()
    return total / 100


def entries_of(visible: Prefix | Chosen) -> list[list[list[int]]]:
    if isinstance(visible, Chosen):
        return [[[i for i in each if i >= 0] for each in row] for row in visible.index_BTK.tolist()]
    firsts, counts = visible.first_BT.tolist(), visible.count_BT.tolist()
    return [[list(range(a, a + n)) for a, n in zip(*row, strict=True)] for row in zip(firsts, counts, strict=True)]


@pytest.mark.parametrize("chosen", [False, True])
def test_loss_and_gradients_are_those_of_loops(made, chosen):
    vectors = [made.vectors.q_BTHI, made.vectors.keys_BEI, made.vectors.weights_BTH]
    visible = index_topk(*(x.detach() for x in vectors), made.everything, TOPK) if chosen else made.everything
    loss = made.compute(visible).loss
    assert loss is not None
    expected = by_loops(made, entries_of(visible))
    assert float(expected.detach()) > 1e-3
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    found = torch.autograd.grad(loss, [*vectors, made.q, made.keys, made.entries, made.sink], allow_unused=True)
    assert found[3:] == (None,) * 4, "attention is a constant"
    for gradient, wanted in zip(found, torch.autograd.grad(expected, vectors), strict=False):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-12)


def test_recall_counts_what_both_rank_first(made):
    hits = wanted = 0
    for row, queries in enumerate(entries_of(made.everything)):
        for t, entries in enumerate(queries):
            if (int(made.layout.positions[row, t]) + 1) % SAMPLED == 0 and len(entries) > TOPK:
                ranked = [
                    x(made, row, t, entries).sort(descending=True, stable=True) for x in (attention_mass, index_scores)
                ]
                best = [order.indices[:TOPK].tolist() for order in ranked]
                hits += len(set(best[0]) & set(best[1]))
                wanted += TOPK
    assert 0 < hits < wanted
    assert wanted == 4 * TOPK, "documents of 70, 64 and 140 tokens are measured at 1, 1 and 2"
    assert made.compute(made.everything).recall.tolist() == [hits, wanted]


def train(model: nn.Module, row: Tensor, documents: Tensor, warmup: bool | None, tokens: int) -> Outcome:
    """One pass with cross-entropy and, unless `warmup` is None, the indexers' loss."""
    training = None if warmup is None else IndexerTraining(tokens, warmup)
    loss = StepLoss(taught=tokens, tokens=tokens, mtp=False, indexers=training)
    return ParallelModel.alone(model).train([Batch(row, row, documents)], loss, lambda phase: None)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    model.zero_grad()
    return found


ROW = torch.randint(64, (1, 150), generator=torch.Generator().manual_seed(3))
ONE = torch.ones_like(ROW)


def test_the_model_learns_by_its_own_loss_and_indexers_by_theirs(toy_model):
    model = toy_model()
    train(model, ROW, ONE, None, 150)
    before = gradients(model)
    indexer_trainer(warmup=False)(model)
    outcome = train(model, ROW, ONE, False, 150)
    after = gradients(model)
    learnt = {name for name in after if INDEXERS in name}
    assert learnt == {name for name, _ in model.named_parameters() if INDEXERS in name}
    assert outcome.totals()[INDEXER_LOSS] > 1e-3
    assert outcome.recall.keys() == {1, 3}
    assert after.keys() - learnt == before.keys()
    assert all(torch.equal(after[name], gradient) for name, gradient in before.items())
    assert all(float(after[name].norm()) > 0 for name in learnt)


def test_a_warmup_trains_indexers_alone_on_attention_to_all_entries(toy_model):
    model = toy_model()
    indexer_trainer(warmup=True)(model)
    outcome = train(model, ROW, ONE, True, 150)
    assert all(INDEXERS in name for name in gradients(model))
    dense = toy_model(index_topk=64)
    train_dense = train(dense, ROW, ONE, None, 150)
    assert outcome.totals()["loss"] == pytest.approx(train_dense.totals()["loss"], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [False, True])
def test_a_packed_row_teaches_what_its_documents_teach_alone(toy_model, warmup):
    model = toy_model()
    indexer_trainer(warmup)(model)
    lengths = [70, 2, 66]
    documents = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)] + [torch.zeros(12)])[None].long()
    packed = train(model, ROW, documents, warmup, 138)
    together = gradients(model)
    losses = [
        train(model, piece, torch.ones_like(piece), warmup, 138).totals()[INDEXER_LOSS]
        for piece in ROW[:, :138].split(lengths, dim=1)
    ]
    assert packed.totals()[INDEXER_LOSS] == pytest.approx(sum(losses), rel=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("qat", [False, True])
def test_what_serving_rounds_is_rounded_in_training_too(toy_model, qat):
    changes = {"moe_intermediate_size": 32} if qat else {}
    plain, rounded = (toy_model(torch.float32, numerics=numerics, **changes) for numerics in ("plain", "released"))
    if qat:
        fake_quantize_modules(rounded, "released")
    losses = []
    for model in (plain, rounded):
        indexer_trainer(warmup=False)(model)
        losses.append(train(model, ROW, ONE, False, 150).totals()[INDEXER_LOSS])
        assert all(float(x.norm()) > 0 for name, x in gradients(model).items() if INDEXERS in name)
    assert losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [False, True])
def test_memory_is_linear_in_tokens(toy_model, warmup):
    attention = toy_model(torch.float32).layers[1].attn
    assert isinstance(attention, Attention)
    attention.indexer.requires_grad_(True)
    sizes = []
    for length in (1024, 2048):
        indexer_loss = RoutingLedger(indexers=IndexerTraining(length, warmup)).new_indexer_loss(1)
        with LargestTensor() as largest:
            attention(torch.randn(1, length, 32), SequenceLayout.single(1, length), indexer_loss)
            assert indexer_loss.loss is not None
            indexer_loss.loss.backward()
        sizes.append(largest.size)
    assert sizes[1] <= 2.1 * sizes[0]
    assert sizes[1] < 2048 * 2048 / 4
