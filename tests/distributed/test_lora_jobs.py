"""The LoRA recipe of CPU size as a job of two processes: the losses of one, and an adapter that merges."""

import os
from pathlib import Path

import pytest

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.io.jsonl import read_records
from seektune.lora.format import read_adapter
from tests.launch.forked import ForkedJob
from tests.patience import HUNG
from tests.places import ROOT, TINY_LORA

SMALL = ("--batch.global_size=8", "--batch.micro_size=4", "--steps=4", "--schedule.warmup_steps=1")
QUIET = ("--evaluate.limit=4", "--evaluate.every=2", "--checkpoint.every=2", "--logging.to=[]")


def automodel(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    code = "from seektune.cli import automodel; automodel()"
    with ForkedJob(code, (str(TINY_LORA), *words), ROOT, environment, folder / "printed") as job:
        printed, error = job.communicate(timeout=HUNG)
    assert job.returncode == 0, error
    return printed


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path):
    rows, folders = write_hellaswag(tmp_path / "rows", 40, 6), (tmp_path / "one", tmp_path / "two")
    sizes = ("--nproc-per-node=2", "--parallel.ep_size=2")
    for folder, more in zip(folders, ((), sizes), strict=True):
        said = automodel(tmp_path, f"--data.path={rows}", f"--run_dir={folder}", *SMALL, *QUIET, *more)
        assert "none changed" in said
        assert "router, indexer and balancing biases too" in said
    for file in ("metrics.jsonl", "validation.jsonl"):
        one, two = ([line["loss"] for line in read_records(folder / file)] for folder in folders)
        assert len(one) > 2
        assert two == pytest.approx(one, rel=1e-4)
    first, second = (read_adapter(folder / "adapter") for folder in folders)
    assert list(first[0]) == list(second[0])
    assert first[1] == second[1]
