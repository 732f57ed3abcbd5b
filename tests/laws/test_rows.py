"""Other rows of a batch, and padding, change nothing for a row's tokens."""

import pytest
import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.gate import RoutingLedger

TOLERANCE = 1e-10


@pytest.fixture(scope="module", params=["plain", "released"])
def model(request, toy_model) -> DeepseekV4ForCausalLM:
    return toy_model(numerics=request.param)


def documents_of(*rows: list[int]) -> torch.Tensor:
    """Document numbers from lengths per row; a negative length is padding."""
    parts = [[[0 if n < 0 else number] * abs(n) for number, n in enumerate(row, start=1)] for row in rows]
    return torch.tensor([[number for part in row for number in part] for row in parts])


@torch.no_grad()
def test_row_of_a_batch_has_the_logits_it_has_alone(model):
    documents = documents_of([150], [130, 4, -1, 15], [-5, 1, 144])
    tokens = torch.randint(model.config.vocab_size, documents.shape)
    together = model(tokens, documents=documents, mtp=True)
    for row in range(len(tokens)):
        alone = model(tokens[row, None], documents=documents[row, None], mtp=True)
        real = documents[row] != 0
        joined = (documents[row, 1:] == documents[row, :-1]) & real[1:]
        assert (together.logits[row] - alone.logits[0])[real].abs().max() < TOLERANCE
        assert (together.mtp_logits[row] - alone.mtp_logits[0])[joined].abs().max() < TOLERANCE


@torch.no_grad()
def test_rows_without_documents_are_one_document_each(model):
    tokens = torch.randint(model.config.vocab_size, (2, 140))
    implicit = model(tokens, mtp=True)
    explicit = model(tokens, documents=torch.tensor([[3], [8]]).expand(2, 140), mtp=True)
    assert torch.equal(implicit.logits, explicit.logits)
    assert torch.equal(implicit.mtp_logits, explicit.mtp_logits)


@pytest.mark.slow
@pytest.mark.parametrize("padding", [1, 3, 4, 128, 200])
def test_trailing_padding_changes_nothing(toy_model, padding):
    model = toy_model()
    tokens = torch.randint(model.config.vocab_size, (1, 133))
    padded = torch.cat([tokens, torch.randint(model.config.vocab_size, (1, padding))], dim=1)
    alone = model(tokens, labels=tokens, mtp=True)
    (alone.loss + alone.mtp_loss).backward()
    gradients = {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}
    model.zero_grad()
    # labels on padding are not taught: document number 0 marks padding, not a token id
    out = model(padded, labels=padded, documents=documents_of([133, -padding]), mtp=True)
    (out.loss + out.mtp_loss).backward()
    assert (out.logits[:, :133] - alone.logits).abs().max() < TOLERANCE
    assert (out.mtp_logits[:, :132] - alone.mtp_logits).abs().max() < TOLERANCE
    assert out.loss.item() == pytest.approx(alone.loss.item(), rel=1e-12)
    assert out.mtp_loss.item() == pytest.approx(alone.mtp_loss.item(), rel=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-8, atol=1e-10, msg=name)


@torch.no_grad()
def test_tokens_of_padding_do_not_matter(model):
    documents = documents_of([-3, 130, -20, 5, -2])
    tokens = torch.randint(model.config.vocab_size, documents.shape)
    other = torch.where(documents == 0, (tokens + 1) % model.config.vocab_size, tokens)
    real = documents != 0
    assert not torch.equal(tokens, other)
    first, second = model(tokens, documents=documents, mtp=True), model(other, documents=documents, mtp=True)
    assert (first.logits - second.logits)[real].abs().max() < TOLERANCE
    joined = (documents[:, 1:] == documents[:, :-1]) & real[:, 1:]
    assert (first.mtp_logits - second.mtp_logits)[joined].abs().max() < TOLERANCE


@torch.no_grad()
def test_padding_is_not_counted_in_loads(toy_model):
    model = toy_model()
    tokens = torch.randint(model.config.vocab_size, (1, 20))
    padded = torch.cat([tokens, torch.randint(model.config.vocab_size, (1, 11))], dim=1)
    alone, with_padding = RoutingLedger(), RoutingLedger()
    model(tokens, mtp=True, ledger=alone)
    model(padded, documents=documents_of([20, -11]), mtp=True, ledger=with_padding)
    assert alone.loads.keys() == with_padding.loads.keys() == model.gates().keys()
    for layer, load in alone.loads.items():
        assert torch.equal(load, with_padding.loads[layer]), layer
        torch.testing.assert_close(alone.balance[layer], with_padding.balance[layer], msg=str(layer))
