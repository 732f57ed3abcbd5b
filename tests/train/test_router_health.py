"""Health of the gates, from loads alone; the drift is that of the biases themselves, also of a resumed run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seektune.model.config import DeepseekV4Config
from seektune.model.gate import TopKGate
from seektune.train.balance import update_biases
from seektune.train.config import LoggingConfig
from seektune.train.log_state import check_log_state
from seektune.train.metrics import MetricsLog, as_line
from seektune.train.router_health import bias_moves, dead_experts, entropy, health_table, imbalance
from seektune.train.step import StepRecord

LOADS = {0: [4, 4, 4, 4], 1: [16, 0, 0, 0], 3: [8, 8, 0, 0]}


def test_even_loads_and_one_expert_alone_are_the_ends_of_the_scale() -> None:
    assert imbalance(LOADS) == {0: 1.0, 1: 4.0, 3: 2.0}
    assert entropy(LOADS) == pytest.approx({0: 1.0, 1: 0.0, 3: 0.5})
    assert dead_experts(LOADS) == {0: 0, 1: 3, 3: 2}
    assert entropy({0: [0, 0]}) == {0: 0.0}


def test_the_moves_are_those_of_the_biases() -> None:
    gate = TopKGate(
        DeepseekV4Config.preset("tiny").replace(n_routed_experts=4, num_experts_per_tok=2), None, torch.float32
    )
    gate.bias.zero_()
    load_E = torch.tensor([5, 1, 3, 3])
    update_biases({1: gate}, {1: load_E}, 0.25)
    assert bias_moves({0: [1, 2], 1: load_E.tolist()}, 0.25, hash_layers=1) == {1: gate.bias.tolist()}
    assert bias_moves(LOADS, 0.0, hash_layers=0) == {}


def record(step: int) -> StepRecord:
    numbers = dict.fromkeys(("loss", "mtp_loss", "balance_loss", "grad_norm", "lr", "seconds", "tokens_per_s"), 1.0)
    made = StepRecord(step=step, tokens=16, taught_tokens=15, memory_gb=0.1, loads=dict(LOADS), **numbers)
    return replace(made, bias_moves=bias_moves(LOADS, 0.5, hash_layers=1))


def test_metrics_have_the_health_of_each_step() -> None:
    line = as_line(record(1), 16)
    assert line["dead_experts"] == {0: 0, 1: 3, 3: 2}
    assert line["expert_entropy"][3] == pytest.approx(0.5)
    assert "bias_moves" not in line


def test_a_resumed_run_continues_the_drift(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 4, LoggingConfig(to=())) as log:
        log.step(record(1))
        log.step(record(2))
        state = check_log_state(json.loads(json.dumps(log.state_dict())), experts=4)
        log.step(record(3))
    with MetricsLog(tmp_path, 4, LoggingConfig(to=()), 2, state) as log:
        log.step(record(3))
    moments = [json.loads(line) for line in (tmp_path / "expert_loads.jsonl").read_text().splitlines()]
    assert [moment["bias_drift"]["1"] for moment in moments] == [[-0.5 * n, *[0.5 * n] * 3] for n in (1, 2, 3)]
    assert health_table(moments[-1])[1] == ("layer 1", "4.00", "0.000", "3 of 4", "1.500")
    assert health_table(moments[-1])[0][-1] == "none"


@pytest.mark.parametrize("drift", [[0.0], {"a": [0.0] * 4}, {"1": [0.0]}, {"1": [0.0, 0.0, 0.0, float("nan")]}])
def test_a_damaged_drift_is_refused(drift: object) -> None:
    with pytest.raises(ValueError, match="its drift of biases is not a list of 4 numbers for each layer"):
        check_log_state({"total_tokens": 1, "loads": {}, "bias_drift": drift}, experts=4)
