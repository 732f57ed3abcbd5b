"""The command `verify`: a table, JSON, and an exit code for whether two checkpoints are equal."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seektune.checkpoint.convert import convert
from seektune.workflows.verify import verify
from tests.run_cli import seektune

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def other(parity_folder: Path, tmp_path: Path) -> Path:
    """A copy in which two tensors differ and one is of another shape."""
    copy = Path(shutil.copytree(parity_folder, tmp_path / "other"))
    for file in (copy / FIRST, copy / SECOND):
        tensors = load_file(file)
        if "layers.3.attn_norm.weight" in tensors:
            tensors["layers.3.attn_norm.weight"][5] = 0
        if "head.weight" in tensors:
            tensors["head.weight"][7, 7] = math.nan
        if "norm.weight" in tensors:
            tensors["norm.weight"] = torch.ones(3).bfloat16()
        save_file(tensors, file)
    return copy


def test_equal_checkpoints_in_a_table(parity_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    convert(parity_folder, tmp_path / "bf16", "bf16")
    assert verify(str(parity_folder), str(tmp_path / "bf16"))
    assert capsys.readouterr().out.splitlines() == [
        "status             tensors       bytes",
        "same bytes              99     1.15 MB",
        "same values            164     1.15 MB",
        "all 263 tensors are equal",
    ]


def test_what_differs_is_told_by_tensor(parity_folder: Path, other: Path, capsys: pytest.CaptureFixture[str]):
    before = load_file(parity_folder / FIRST) | load_file(parity_folder / SECOND)
    assert not verify(str(parity_folder), str(other))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["same", "bytes", "260", *lines[1].split()[-2:]]
    assert [line.split()[0] for line in lines[2:4]] == ["differs", "other"]
    assert lines[4:] == [
        f"layers.3.attn_norm.weight: differs by up to {before['layers.3.attn_norm.weight'][5].item():.3g} (bf16 [128])",
        "head.weight: differs by up to inf (bf16 [160, 128])",
        "norm.weight: bf16 [128] in A, bf16 [3] in B",
        "3 of 263 tensors differ",
    ]


def test_the_table_of_very_many_differences_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for folder, value in (("a", 0.0), ("b", 1.0)):
        (tmp_path / folder).mkdir()
        save_file(
            {f"layers.{n}.x": torch.full((2,), value) for n in range(30)}, tmp_path / folder / "model.safetensors"
        )
    assert not verify(str(tmp_path / "a"), str(tmp_path / "b"))
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("layers.")]) == 20
    assert lines[-2:] == ["... and 10 more (--json lists all)", "30 of 30 tensors differ"]
    assert verify(str(tmp_path / "a"), str(tmp_path / "b"), tolerance=1.0)


def test_json_holds_counts_and_every_difference(parity_folder: Path, other: Path, capsys: pytest.CaptureFixture[str]):
    assert not verify(str(parity_folder), str(other), tolerance=8.0, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["a"], found["b"], found["tolerance"], found["equal"]) == (str(parity_folder), str(other), 8.0, False)
    counts = {status: count["tensors"] for status, count in found["counts"].items()}
    assert counts == {"same bytes": 260, "within tolerance": 1, "differs": 1, "other shape": 1}
    assert found["counts"]["other shape"]["bytes"] == 256
    assert [(each["name"], each["status"], each["difference"]) for each in found["different"]] == [
        ("head.weight", "differs", None),
        ("norm.weight", "other shape", None),
    ]
    assert found["different"][1]["b"] == "bf16 [3]"


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_must_be_a_distance(parity_folder: Path, tolerance: float):
    with pytest.raises(ValueError, match="must be a finite number of at least 0"):
        verify(str(parity_folder), str(parity_folder), tolerance)


@pytest.mark.slow
def test_exit_codes(parity_folder: Path, other: Path, tmp_path: Path):
    equal = seektune("verify", parity_folder, parity_folder)
    assert (equal.returncode, equal.stderr) == (0, "")
    different = seektune("verify", parity_folder, other, "--json", "--tolerance", "0.1")
    assert (different.returncode, different.stderr) == (1, "")
    assert json.loads(different.stdout)["equal"] is False
    (other / SECOND).write_bytes(b"")
    damaged = seektune("verify", parity_folder, other)
    assert (damaged.returncode, damaged.stdout) == (2, "")
    assert f"{SECOND} is damaged" in damaged.stderr
    assert damaged.stderr.count("\n") == 1
