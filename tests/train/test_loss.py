import pytest
import torch

from seektune.model.causal_lm import CausalLMOutput
from seektune.model.gate import RoutingLedger
from seektune.train.config import LossConfig
from seektune.train.loss import loss_parts, sum_parts


def test_total_weighs_every_part():
    output = CausalLMOutput(loss=torch.tensor(2.0), mtp_loss=torch.tensor(3.0))
    ledger = RoutingLedger(balance={0: torch.tensor(10.0), 1: torch.tensor(30.0)})
    parts = loss_parts(output, ledger, tokens=20)
    assert float(parts.balance) == 2.0
    assert float(parts.total(LossConfig(mtp_weight=0.1, balance_weight=0.01))) == pytest.approx(2.0 + 0.3 + 0.02)


def test_what_did_not_run_counts_nothing():
    parts = loss_parts(CausalLMOutput(loss=torch.tensor(2.0)), RoutingLedger(balance_loss=False), tokens=20)
    assert (float(parts.mtp), float(parts.balance)) == (0.0, 0.0)
    assert float(parts.total(LossConfig(mtp_weight=0.5, balance_weight=0.5))) == 2.0


def test_shares_sum_to_the_step():
    ledger = RoutingLedger(balance={0: torch.tensor(4.0)})
    output = CausalLMOutput(loss=torch.tensor(0.5), mtp_loss=torch.tensor(0.25))
    whole = sum_parts([loss_parts(output, ledger, tokens=8)] * 3)
    assert [float(whole.loss), float(whole.mtp), float(whole.balance)] == [1.5, 0.75, 1.5]
