import pytest
import torch

from seektune.model.gate import RoutingLedger
from seektune.model.head import Losses
from seektune.model.objective import LossParts, Objective

ZERO = torch.zeros(())


def test_total_weighs_every_part():
    objective = Objective(taught=10, tokens=20, mtp=True, mtp_weight=0.1, balance_weight=0.01)
    ledger = RoutingLedger()
    ledger.balance = {0: torch.tensor(10.0), 1: torch.tensor(30.0)}
    parts = LossParts.of(Losses(torch.tensor(2.0), torch.tensor(3.0)), objective.balance(ledger), ZERO)
    assert float(parts.balance) == 2.0
    assert float(objective.total(parts)) == pytest.approx(2.0 + 0.3 + 0.02)
    assert parts.values().tolist() == [2.0, 3.0, 2.0]


def test_what_did_not_run_counts_nothing():
    objective = Objective(taught=10, tokens=20, mtp=False, mtp_weight=0.5, balance_weight=0.0)
    assert not objective.ledger().balance_loss
    parts = LossParts.of(Losses(torch.tensor(2.0), None), objective.balance(objective.ledger()), ZERO)
    assert parts.values().tolist() == [2.0, 0.0, 0.0]
    assert float(objective.total(parts)) == 2.0
