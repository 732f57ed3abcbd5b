import torch

from seektune.model.gate import TopKGate
from seektune.train.balance import update_biases
from tests.train.tiny_run import small_model


def test_bias_rises_for_idle_experts_and_falls_for_busy_ones():
    gates = small_model().gates()
    loads = {layer: torch.tensor([10, 0, 5, 5]) for layer in gates}
    update_biases(gates, loads, 0.001)
    for gate in gates.values():
        if isinstance(gate, TopKGate):
            torch.testing.assert_close(gate.bias, torch.tensor([-0.001, 0.001, 0.0, 0.0]))
    assert sum(isinstance(gate, TopKGate) for gate in gates.values()) == 3


def test_a_layer_that_did_not_run_stays():
    gates = small_model().gates()
    update_biases(gates, {1: torch.tensor([1, 0, 0, 0])}, 0.5)
    assert gates[1].bias.tolist() == [-0.5, 0.5, 0.5, 0.5]
    assert gates[3].bias.tolist() == [0.0] * 4


def test_speed_zero_changes_no_byte():
    gates = small_model().gates()
    gates[1].bias.copy_(torch.tensor([-0.0, 1.0, 2.0, 3.0]))
    before = gates[1].bias.clone()
    update_biases(gates, {1: torch.tensor([4, 0, 0, 0])}, 0.0)
    assert torch.equal(gates[1].bias.view(torch.int32), before.view(torch.int32))
