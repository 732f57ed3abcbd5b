"""Objectives as functions of log-probabilities, and the parts of a step's loss by name."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from seektune.kernels import token_logprobs
from seektune.model.gate import RoutingLedger
from seektune.model.head import Losses, Taught
from seektune.model.objective import CROSS_ENTROPY, CrossEntropy, LogprobObjective, TokenLogprobs
from seektune.model.step_loss import StepLoss
from seektune.sequence import Batch, SequenceLayout

ZERO = torch.zeros(())
DOCUMENTS = torch.tensor([[1] * 5 + [2] * 3 + [0] * 2, [1] * 10])


@pytest.fixture
def batch() -> Batch:
    tokens = torch.randint(11, DOCUMENTS.shape)
    labels = torch.where((torch.rand(DOCUMENTS.shape) < 0.3) | (DOCUMENTS == 0), -100, tokens)
    columns = {"weights": torch.rand(DOCUMENTS.shape), "place": torch.arange(20).view(2, 10)}
    return Batch(tokens, labels, DOCUMENTS, columns)


@pytest.fixture
def head() -> tuple[Tensor, Tensor]:
    """Hidden states and the head's weight."""
    hidden = torch.randn(*DOCUMENTS.shape, 6, dtype=torch.float64, requires_grad=True)
    return hidden, torch.randn(11, 6, dtype=torch.float64, requires_grad=True)


def logprobs_of(batch: Batch, head: tuple[Tensor, Tensor], divisor: float = 1.0) -> TokenLogprobs:
    layout = SequenceLayout.from_documents(batch.documents)
    return TokenLogprobs.of(head[0], layout, Taught(batch.labels, divisor, batch.columns), head[1])


def test_log_probabilities_come_with_columns_and_documents_of_their_own_tokens(batch, head):
    found = logprobs_of(batch, head)
    logprobs = (head[0] @ head[1].T).log_softmax(-1)
    expected, places, documents = [], [], []
    for row, first in ((0, 0), (1, 4)):
        for t in range(9):
            document = int(DOCUMENTS[row, t])
            if document and document == DOCUMENTS[row, t + 1] and batch.labels[row, t + 1] != -100:
                expected.append(logprobs[row, t, batch.tokens[row, t + 1]])
                places.append(row * 10 + t + 1)
                documents.append(first + document - 1)
    torch.testing.assert_close(found.values_N, torch.stack(expected), rtol=1e-12, atol=1e-12)
    assert found.columns["place"].tolist() == places
    assert found.documents_N.tolist() == documents
    sums = found.document_sums(found.values_N)
    assert sums.shape == (5,), "a padding token is a document"
    for document in {*documents}:
        mine = [value for value, number in zip(expected, documents, strict=True) if number == document]
        torch.testing.assert_close(sums[document], torch.stack(mine).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_as_a_function_of_log_probabilities_is_the_fused_one(batch, head, weighted):
    batch = batch if weighted else replace(batch, columns={})
    count = CROSS_ENTROPY.count(batch)
    layout = SequenceLayout.from_documents(batch.documents)
    taught = Taught(batch.labels, count, batch.columns)
    fused = CROSS_ENTROPY.of_hidden(head[0], layout, taught, count, head[1]).loss
    plain = LogprobObjective.of_hidden(CROSS_ENTROPY, head[0], layout, taught, count, head[1]).loss
    assert fused.item() == pytest.approx(plain.item(), rel=1e-12)
    for found, expected in zip(*(torch.autograd.grad(x, head) for x in (fused, plain)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_weights_multiply_losses_and_their_sum_divides(batch, head):
    tokens = logprobs_of(batch, head)
    weights = tokens.columns["weights"]
    assert CROSS_ENTROPY.count(batch) == pytest.approx(float(weights.sum()))
    loss = CROSS_ENTROPY.loss(tokens, CROSS_ENTROPY.count(batch)).loss
    assert loss.item() == pytest.approx(float(-(weights * tokens.values_N.detach()).sum() / weights.sum()))


def test_equal_weights_change_nothing(batch, head):
    plain = replace(batch, columns={})
    fives = replace(batch, columns={"weights": torch.full(DOCUMENTS.shape, 5.0)})
    losses = [CROSS_ENTROPY.loss(logprobs_of(x, head), CROSS_ENTROPY.count(x)).loss.item() for x in (plain, fives)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert CROSS_ENTROPY.count(plain) == plain.taught()


def test_the_total_weighs_every_part():
    step = StepLoss(taught=10, tokens=20, mtp=True, mtp_weight=0.1, balance_weight=0.01)
    ledger = RoutingLedger()
    ledger.balance = {0: torch.tensor(10.0), 1: torch.tensor(30.0)}
    parts = step.parts(Losses(torch.tensor(2.0), torch.tensor(3.0), {"margin": torch.tensor(9.0)}), ledger)
    assert {name: float(x) for name, x in parts.items()} == {
        "loss": 2.0,
        "mtp_loss": 3.0,
        "balance_loss": 2.0,
        "margin": 9.0,
    }
    assert float(step.total(parts, ZERO)) == pytest.approx(2.0 + 0.3 + 0.02)


def test_what_did_not_run_counts_nothing():
    step = StepLoss(taught=10, tokens=20, mtp=False, mtp_weight=0.5, balance_weight=0.0)
    assert not step.ledger().balance_loss
    parts = step.parts(Losses(torch.tensor(2.0), None), step.ledger())
    assert {name: float(x) for name, x in parts.items()} == {"loss": 2.0}
    assert float(step.total(parts, ZERO)) == 2.0


def test_the_gradient_reaches_the_head_through_any_function(batch, head):
    """d loss / d log p comes from autograd; here of a clipped ratio, whose gradient is not known beforehand."""
    tokens = logprobs_of(batch, head)
    old = tokens.values_N.detach() + 0.3 * torch.randn_like(tokens.values_N)
    found = torch.autograd.grad((tokens.values_N - old).exp().clamp(0.8, 1.2).sum(), head)
    layout = SequenceLayout.from_documents(batch.documents)
    hidden_ND, targets_N = layout.taught(head[0], layout.targets(batch.labels, 1))
    plain = token_logprobs.reference(hidden_ND, head[1], targets_N)
    expected = torch.autograd.grad((plain - old).exp().clamp(0.8, 1.2).sum(), head)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-14)


def test_z_loss_adds_the_squared_log_of_the_normalizer_to_the_gradient_alone() -> None:
    torch.manual_seed(0)
    layout = SequenceLayout.from_documents(torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0]]))
    labels_BT = torch.tensor([[4, 3, -100, 1, 2, 6, 0, -100]])
    weight_VD = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    hidden_BTD = torch.randn(1, 8, 5, dtype=torch.float64, requires_grad=True)
    taught = Taught(labels_BT, 4.0)
    plain = CrossEntropy().of_hidden(hidden_BTD, layout, taught, 4.0, weight_VD)
    found = CrossEntropy(z_weight=0.3).of_hidden(hidden_BTD, layout, taught, 4.0, weight_VD)
    predicting = [0, 3, 4, 5]
    squares_N = torch.logsumexp(hidden_BTD[0, predicting] @ weight_VD.T, dim=1) ** 2
    assert CrossEntropy().part_names == ()
    assert CrossEntropy(z_weight=0.3).part_names == ("z_loss",)
    torch.testing.assert_close(found.loss, plain.loss)
    torch.testing.assert_close(found.parts["z_loss"], squares_N.sum() / 4)
    leaves = (hidden_BTD, weight_VD)
    expected = torch.autograd.grad(plain.loss + 0.3 * squares_N.sum() / 4, leaves)
    torch.testing.assert_close(torch.autograd.grad(found.loss, leaves), expected)
