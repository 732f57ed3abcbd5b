import subprocess
import sys

import pytest
from pydantic import ValidationError

from seektune.train.config import CheckpointConfig, LoggingConfig, LossConfig, ScheduleConfig
from seektune.train.optim.config import AdamWConfig

INFINITE = float("inf")


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (AdamWConfig, {"lr": 0}),
        (AdamWConfig, {"lr": INFINITE}),
        (AdamWConfig, {"lr": float("nan")}),
        (AdamWConfig, {"betas": (0.9, 1.0)}),
        (AdamWConfig, {"betas": (0.9,)}),
        (AdamWConfig, {"weight_decay": -0.1}),
        (AdamWConfig, {"max_grad_norm": 0}),
        (AdamWConfig, {"master": "bf16"}),
        (AdamWConfig, {"name": "sgd"}),
        (ScheduleConfig, {"warmup_steps": -1}),
        (ScheduleConfig, {"min_lr_ratio": 1.5}),
        (ScheduleConfig, {"name": "step"}),
        (LossConfig, {"mtp_weight": -1}),
        (LossConfig, {"bias_update_speed": INFINITE}),
        (CheckpointConfig, {"every": 0}),
        (LoggingConfig, {"every": 0}),
        (LoggingConfig, {"evry": 2}),
    ],
)
def test_impossible_values_are_refused(section, values):
    with pytest.raises(ValidationError) as caught:
        section(**values)
    assert caught.value.errors()[0]["loc"][0] in values


def test_defaults_are_those_of_fine_tuning():
    assert AdamWConfig().betas == (0.9, 0.95)
    assert AdamWConfig().master == "fp32"
    assert LossConfig() == LossConfig(mtp_weight=0.1, balance_weight=0.0, bias_update_speed=0.0)


def test_sections_do_not_wait_for_torch():
    code = "import sys, seektune.train.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
