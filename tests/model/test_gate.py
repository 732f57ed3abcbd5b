"""Gates: chosen experts, their weights, and the ledger's records."""

import math

import pytest
import torch
import torch.nn.functional as F

from seektune.model.gate import HashGate, RoutingLedger, TopKGate
from seektune.sequence import SequenceLayout


@pytest.fixture
def model(toy_model):
    return toy_model(routed_scaling_factor=2.5)


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(50, 32, dtype=torch.float64)


def scores_of(gate, x: torch.Tensor) -> list[float]:
    return [math.sqrt(math.log1p(math.exp(logit))) for logit in (gate.weight @ x).tolist()]


def test_weights_are_normalized_scores_times_the_factor(model, hidden):
    gate = model.layers[2].ffn.gate
    assert isinstance(gate, TopKGate)
    routing = gate(hidden, None)
    for n, x in enumerate(hidden):
        scores = scores_of(gate, x)
        biased = [score + bias for score, bias in zip(scores, gate.bias.tolist(), strict=True)]
        best = sorted(range(8), key=biased.__getitem__, reverse=True)[:3]
        found = dict(zip(routing.experts_NK[n].tolist(), routing.weights_NK[n].tolist(), strict=True))
        total = sum(scores[expert] for expert in best)
        assert found == pytest.approx({expert: 2.5 * scores[expert] / total for expert in best}, rel=1e-9)
    torch.testing.assert_close(routing.weights_NK.sum(dim=1), torch.full((50,), 2.5, dtype=torch.float64))


def test_bias_changes_choices_but_not_weights(model, hidden):
    gate = model.layers[2].ffn.gate
    gate.bias.zero_()
    before = gate(hidden, None)
    gate.bias[5] = 100.0
    after = gate(hidden, None)
    assert (after.experts_NK == 5).any(dim=1).all()
    assert not (before.experts_NK == 5).any(dim=1).all()
    assert torch.equal(before.scores_NE, after.scores_NE)
    chosen = after.scores_NE.gather(1, after.experts_NK)
    torch.testing.assert_close(after.weights_NK, 2.5 * chosen / chosen.sum(dim=1, keepdim=True))
    # an equal bias for all experts changes nothing
    gate.bias.fill_(-7.0)
    same = gate(hidden, None)
    assert torch.equal(same.experts_NK.sort().values, before.experts_NK.sort().values)


def test_bias_is_not_a_parameter(model):
    gate = model.layers[2].ffn.gate
    assert [name for name, _ in gate.named_parameters()] == ["weight"]
    routing = gate(torch.randn(4, 32, dtype=torch.float64), None)
    (gradient,) = torch.autograd.grad(routing.weights_NK.square().sum(), gate.weight)
    assert gradient.abs().max() > 0


def test_hash_gate_uses_the_tables_experts_with_score_weights(model, hidden):
    gate = model.layers[0].ffn.gate
    assert isinstance(gate, HashGate)
    ids = torch.randint(64, (50,))
    routing = gate(hidden, ids)
    assert torch.equal(routing.experts_NK, gate.tid2eid[ids])
    for n, x in enumerate(hidden):
        chosen = [scores_of(gate, x)[expert] for expert in gate.tid2eid[ids[n]]]
        expected = [2.5 * score / sum(chosen) for score in chosen]
        assert routing.weights_NK[n].tolist() == pytest.approx(expected, rel=1e-9)


def test_only_the_first_layers_are_hash_layers(toy_model):
    model = toy_model(num_hash_layers=2)
    kinds = [type(gate) for gate in model.gates().values()]
    assert kinds == [HashGate, HashGate, TopKGate, TopKGate, TopKGate]
    assert list(model.gates()) == [0, 1, 2, 3, 4]
    with_bias = [name for name in model.state_dict() if name.endswith("gate.bias")]
    assert with_bias == ["layers.2.ffn.gate.bias", "layers.3.ffn.gate.bias", "mtp.0.ffn.gate.bias"]


def test_hash_gate_without_token_ids_raises(model, hidden):
    with pytest.raises(ValueError, match="token ids"):
        model.layers[0].ffn.gate(hidden, None)
    layout = SequenceLayout.single(1, 5)
    streams = torch.randn(1, 5, 4, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match="token ids"):
        model.layers[0](streams, None, layout, None)


def test_repeated_expert_in_a_table_row_counts_once(model, hidden):
    """Its weight is in the normalizing sum twice, as in the official code; its output is added once."""
    gate = model.layers[0].ffn.gate
    gate.tid2eid[9] = torch.tensor([4, 2, 4])
    gate.tid2eid[10] = torch.tensor([6, 6, 6])
    routing = gate(hidden[:2], torch.tensor([9, 10]))
    scores = scores_of(gate, hidden[0])
    total = scores[2] + 2 * scores[4]
    weights = torch.zeros(8, dtype=torch.float64).index_add(0, routing.experts_NK[0], routing.weights_NK[0])
    assert weights[4].item() == pytest.approx(2.5 * scores[4] / total, rel=1e-9)
    assert weights[2].item() == pytest.approx(2.5 * scores[2] / total, rel=1e-9)
    assert routing.weights_NK[1].sum().item() == pytest.approx(2.5 / 3, rel=1e-9)


@pytest.mark.parametrize("size", [1.0, 30.0, 200.0])
def test_extreme_logits_give_finite_weights_and_gradients(toy_model, size):
    """Softplus of -200 is 0 in fp32, where the slope of the square root is infinite and 0 * inf is NaN."""
    gate = toy_model(torch.float32).layers[2].ffn.gate
    x = (torch.randn(20, 32) * size).requires_grad_()
    routing = gate(x, None)
    routing.weights_NK.square().sum().backward()
    assert routing.weights_NK.isfinite().all()
    assert x.grad.isfinite().all()
    assert gate.weight.grad.isfinite().all()


def test_scores_are_fp32_in_a_bf16_model(toy_model):
    gate = toy_model(torch.bfloat16).layers[2].ffn.gate
    assert gate.weight.dtype == torch.bfloat16
    assert gate.bias.dtype == torch.float32
    x = torch.randn(30, 32).bfloat16()
    routing = gate(x, None)
    assert routing.scores_NE.dtype == routing.weights_NK.dtype == torch.float32
    exact = F.softplus(x.double() @ gate.weight.double().T).sqrt()
    torch.testing.assert_close(routing.scores_NE.double(), exact, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_ledger_counts_real_tokens_of_each_expert(model):
    tokens = torch.randint(64, (2, 30))
    documents = torch.ones_like(tokens)
    documents[1, 20:] = 0
    ledger = RoutingLedger()
    model(tokens, documents=documents, ledger=ledger)
    table = model.layers[0].ffn.gate.tid2eid
    real = tokens[documents != 0]
    assert ledger.loads[0].tolist() == [int((table[real] == expert).sum()) for expert in range(8)]
    assert set(ledger.loads) == {0, 1, 2, 3}
    assert all(load.sum() == 50 * 3 for load in ledger.loads.values())


def test_sequence_balance_equals_f_times_p_per_document(model):
    """V3's formula: f_i = E / (K T) * (tokens that chose i), P_i = mean share of i in a token's scores."""
    documents = torch.tensor([[1] * 10 + [0] * 3 + [2] * 7, [5] * 20])
    x = torch.randn(2, 20, 32, dtype=torch.float64)
    ffn = model.layers[2].ffn
    ledger = RoutingLedger()
    ffn(x, None, SequenceLayout.from_documents(documents), ledger)
    expected = 0.0
    for row, number in ((0, 1), (0, 2), (1, 5)):
        part = x[row, documents[row] == number]
        routing = ffn.gate(part, None)
        share = (routing.scores_NE / routing.scores_NE.sum(dim=1, keepdim=True)).mean(dim=0)
        chosen = torch.bincount(routing.experts_NK.flatten(), minlength=8).double()
        expected += len(part) * (8 / (3 * len(part)) * chosen * share).sum().item()
    assert ledger.balance[2].item() == pytest.approx(expected, rel=1e-9)
    ledger.balance[2].backward()
    assert ffn.gate.weight.grad.abs().max() > 0
    quiet = RoutingLedger(balance_loss=False)
    ffn(x, None, SequenceLayout.from_documents(documents), quiet)
    assert quiet.balance == {}
