"""A streamed run that one process begins and two resume: the same losses as those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.recipe.recipe import Recipe
from seektune.workflows.train import train
from tests.patience import HUNG
from tests.places import ROOT
from tests.read_run import losses, validations

pytestmark = pytest.mark.slow


def test_a_streamed_run_resumes_exactly_with_more_processes(tmp_path: Path, toy_config) -> None:
    toy_config(vocab_size=512).save(tmp_path)
    recipe = {
        "model": {"config": str(tmp_path / "config.json"), "dtype": "fp32"},
        "data": {"path": str(write_hellaswag(tmp_path / "rows", 40, 6)), "stream": True},
        "batch": {"global_size": 4, "length": 128, "pack": True},
        "optimizer": {"lr": 5e-3},
        "evaluate": {"tasks": []},
        "logging": {"to": []},
        "checkpoint": {"every": 2},
        "steps": 4,
        "run_dir": str(tmp_path / "alone"),
    }
    alone = train(Recipe.model_validate_json(json.dumps(recipe), strict=True), "run", (), tmp_path / "cache")
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    words = [
        *(sys.executable, "-c", "from seektune.cli import automodel; automodel()", str(file), "--nproc-per-node=2"),
        *(f"--resume={alone / 'checkpoints' / 'step-000002'}", f"--run_dir={tmp_path / 'pair'}"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=HUNG, check=False)
    assert done.returncode == 0, done.stderr
    resumed = dict(losses(tmp_path / "pair"))
    assert set(resumed) >= {3, 4}
    whole = dict(losses(alone))
    assert {step: resumed[step] for step in (3, 4)} == pytest.approx({step: whole[step] for step in (3, 4)}, rel=1e-5)
    assert dict(validations(tmp_path / "pair"))[4] == pytest.approx(dict(validations(alone))[4], rel=1e-5)
