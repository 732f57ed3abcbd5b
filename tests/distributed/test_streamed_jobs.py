"""A streamed run that one process begins and two resume: the same losses as those of one process."""

import json
from pathlib import Path

import pytest

from seektune.io.jsonl import read_records
from seektune.io.run_files import METRICS
from seektune.recipe.recipe import Recipe
from seektune.workflows.train import train
from tests.read_run import losses, validations
from tests.run.few_steps import write_pairs
from tests.run_cli import worker_processes

pytestmark = pytest.mark.slow


def test_a_streamed_run_resumes_exactly_with_more_processes(
    tmp_path: Path, toy_config, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_config(vocab_size=512).save(tmp_path)
    many = write_pairs(tmp_path / "many", 24, files=4) | {"stream": True, "on_bad_row": "drop"}
    few = write_pairs(tmp_path / "few", 9) | {"stream": True, "weight": 0.5}
    with (tmp_path / "many" / "train-2.jsonl").open("a") as file:
        file.write("{\n")
    recipe = {
        "model": {"config": str(tmp_path / "config.json"), "dtype": "fp32"},
        "data": [many, few],
        "batch": {"global_size": 4, "length": 128, "pack": True},
        "optimizer": {"lr": 5e-3},
        "evaluate": {"tasks": []},
        "logging": {"to": []},
        "checkpoint": {"every": 2},
        "steps": 4,
        "run_dir": str(tmp_path / "alone"),
    }
    alone = train(Recipe.model_validate_json(json.dumps(recipe), strict=True), "run", (), tmp_path / "cache")
    line = "streamed data: 1 row left out: "
    assert line in capsys.readouterr().out
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    words = "train", str(file), f"--resume={alone / 'checkpoints' / 'step-000002'}", f"--run_dir={tmp_path / 'pair'}"
    ranks = worker_processes(*words, world=2)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks
    resumed = dict(losses(tmp_path / "pair"))
    assert set(resumed) >= {3, 4}
    whole = dict(losses(alone))
    assert {step: resumed[step] for step in (3, 4)} == pytest.approx({step: whole[step] for step in (3, 4)}, rel=1e-5)
    assert line in ranks[0].stdout
    assert [each["bad_rows"] for each in read_records(tmp_path / "pair" / METRICS)] == [1, 1]
    assert dict(validations(tmp_path / "pair"))[4] == pytest.approx(dict(validations(alone))[4], rel=1e-5)
