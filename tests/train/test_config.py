import subprocess
import sys

import pytest
from pydantic import ValidationError

from seektune.train.config import CheckpointConfig, LoggingConfig, LossConfig, OptimizerConfig, ScheduleConfig

INFINITE = float("inf")


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (OptimizerConfig, {"lr": 0}),
        (OptimizerConfig, {"lr": INFINITE}),
        (OptimizerConfig, {"lr": float("nan")}),
        (OptimizerConfig, {"betas": (0.9, 1.0)}),
        (OptimizerConfig, {"betas": (0.9,)}),
        (OptimizerConfig, {"weight_decay": -0.1}),
        (OptimizerConfig, {"max_grad_norm": 0}),
        (OptimizerConfig, {"master": "bf16"}),
        (OptimizerConfig, {"name": "sgd"}),
        (ScheduleConfig, {"warmup_steps": -1}),
        (ScheduleConfig, {"min_lr_ratio": 1.5}),
        (ScheduleConfig, {"name": "linear"}),
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
    assert OptimizerConfig().betas == (0.9, 0.95)
    assert OptimizerConfig().master == "fp32"
    assert LossConfig() == LossConfig(mtp_weight=0.1, balance_weight=0.0, bias_update_speed=0.0)


def test_sections_do_not_wait_for_torch():
    code = "import sys, seektune.train.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
