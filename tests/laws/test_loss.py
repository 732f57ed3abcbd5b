"""The loss: one denominator, one alignment, and the same value with and without logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.model.causal_lm import CausalLMOutput, DeepseekV4ForCausalLM
from seektune.sequence import Batch


@pytest.fixture(scope="module")
def model(toy_model) -> DeepseekV4ForCausalLM:
    return toy_model()


@pytest.fixture
def batch(model) -> Batch:
    """Four packed rows; a third of the labels is not taught, inside and at the ends of documents."""
    documents = torch.tensor(
        [[1] * 30 + [2] * 1 + [3] * 9, [1] * 40, [4] * 3 + [0] * 2 + [5] * 35, [1] * 20 + [0] * 20]
    )
    tokens = torch.randint(model.config.vocab_size, documents.shape)
    untaught = (torch.rand(documents.shape) < 0.3) | (documents == 0)
    return Batch(tokens, torch.where(untaught, -100, tokens), documents)


def run(model: DeepseekV4ForCausalLM, batch: Batch, **options: object) -> CausalLMOutput:
    return model(batch.tokens, labels=batch.labels, documents=batch.documents, mtp=True, **options)


def gradients(model: DeepseekV4ForCausalLM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def reference_loss(logits: Tensor, batch: Batch, ahead: int) -> tuple[Tensor, int]:
    """Sum of cross-entropies and their number: position t predicts label t + ahead within one document."""
    total, count = torch.zeros((), dtype=logits.dtype), 0
    rows, length = batch.tokens.shape
    for b in range(rows):
        for t in range(length - ahead):
            numbers = batch.documents[b, t : t + ahead + 1]
            label = batch.labels[b, t + ahead]
            if numbers[0] == 0 or len(numbers.unique()) > 1 or label == -100:
                continue
            total = total + F.cross_entropy(logits[b, t], label)
            count += 1
    return total, count


def test_labels_are_unshifted_and_minus_100_is_not_taught(model, batch):
    out = run(model, batch)
    total, count = reference_loss(out.logits, batch, ahead=1)
    assert 0 < count < batch.tokens.numel() // 2 + 40
    assert count == batch.taught()
    assert out.loss.item() == pytest.approx((total / count).item(), rel=1e-12)


def test_mtp_loss_predicts_two_ahead_with_the_same_denominator(model, batch):
    out = run(model, batch)
    total, count = reference_loss(out.mtp_logits, batch, ahead=2)
    assert count < batch.taught()
    assert out.mtp_loss.item() == pytest.approx((total / batch.taught()).item(), rel=1e-12)


def test_first_token_of_a_document_is_not_taught(model, batch):
    labels = batch.labels.clone()
    labels[:, 1:][batch.documents[:, 1:] != batch.documents[:, :-1]] = 5
    labels[:, 0] = 5
    relabelled = Batch(batch.tokens, labels, batch.documents)
    assert relabelled.taught() == batch.taught()
    assert torch.equal(run(model, relabelled).loss, run(model, batch).loss)


@pytest.mark.parametrize("divisor", [1, 7, torch.tensor(1000)])
def test_num_items_in_batch_divides_both_losses(model, batch, divisor):
    mean, out = run(model, batch), run(model, batch, num_items_in_batch=divisor)
    assert out.loss.item() * float(divisor) == pytest.approx(mean.loss.item() * batch.taught(), rel=1e-12)
    assert out.mtp_loss.item() * float(divisor) == pytest.approx(mean.mtp_loss.item() * batch.taught(), rel=1e-12)


@pytest.mark.slow
def test_micro_batches_sum_to_the_whole_batch(model, batch):
    whole = run(model, batch)
    expected = gradients(model, whole.loss + 0.1 * whole.mtp_loss)
    items = batch.taught()
    sums = {name: torch.zeros_like(x) for name, x in expected.items()}
    losses, uneven = 0.0, set()
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        part = Batch(batch.tokens[rows], batch.labels[rows], batch.documents[rows])
        uneven.add(part.taught())
        out = run(model, part, num_items_in_batch=items)
        losses += out.loss.item()
        for name, gradient in gradients(model, out.loss + 0.1 * out.mtp_loss).items():
            sums[name] += gradient
    assert len(uneven) == 3, "with equal parts, a mean of means would pass"
    assert losses == pytest.approx(whole.loss.item(), rel=1e-12)
    for name, gradient in expected.items():
        torch.testing.assert_close(sums[name], gradient, rtol=1e-8, atol=1e-12, msg=name)


@pytest.mark.slow
def test_losses_and_gradients_are_the_same_without_logits(model, batch):
    full, chunked = run(model, batch), run(model, batch, with_logits=False)
    assert chunked.logits is None
    assert chunked.mtp_logits is None
    total, count = reference_loss(full.logits, batch, ahead=1)
    mtp_total, _ = reference_loss(full.mtp_logits, batch, ahead=2)
    from_logits = gradients(model, (total + mtp_total) / count)
    from_chunks = gradients(model, chunked.loss + chunked.mtp_loss)
    assert chunked.loss.item() == pytest.approx((total / count).item(), rel=1e-12)
    assert from_logits.keys() == from_chunks.keys()
    for name, gradient in from_logits.items():
        torch.testing.assert_close(from_chunks[name], gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_batch_without_taught_tokens_has_zero_loss_and_gradients(model, batch):
    nothing = Batch(batch.tokens, torch.full_like(batch.labels, -100), batch.documents)
    assert nothing.taught() == 0
    out = run(model, nothing)
    assert out.loss.item() == out.mtp_loss.item() == 0.0
    for name, gradient in gradients(model, out.loss + out.mtp_loss).items():
        assert (gradient == 0).all(), name


def test_without_labels_there_is_no_loss(model, batch):
    out = model(batch.tokens)
    assert out.loss is None
    assert out.mtp_loss is None
    assert out.mtp_logits is None
    assert out.logits.shape == (*batch.tokens.shape, model.config.vocab_size)
