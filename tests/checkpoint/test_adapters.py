"""Adapter files that are not as they should be are refused, by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seektune.checkpoint.adapters import WEIGHTS, read_adapter, write_adapter
from seektune.checkpoint.change import Change

NAME = "layers.0.attn.wq_b"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of one linear map."""
    write_adapter(tmp_path / "adapter", {NAME: Change(torch.randn(2, 8), torch.randn(6, 2), 2.0)}, {})
    return tmp_path / "adapter"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}


def test_what_is_written_is_read(folder: Path) -> None:
    changes, _ = read_adapter(folder)
    assert list(changes) == [NAME]
    assert changes[NAME].scaling == 2.0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(folder: Path, number: float) -> None:
    found = tensors(folder)
    first = next(iter(found))
    found[first][0, 1] = number
    save_file(found, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"not finite: {first}"):
        read_adapter(folder)


def test_a_missing_an_extra_and_a_cut_tensor_are_refused(folder: Path) -> None:
    found = tensors(folder)
    low, high = sorted(found)
    for wrong in (
        {low: found[low]},
        {high: found[high]},
        found | {low.replace("lora_A", "lora_C"): found[low].clone()},
        found | {low: found[low][:1].clone()},
    ):
        save_file(wrong, folder / WEIGHTS)
        with pytest.raises(ValueError, match="is damaged"):
            read_adapter(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(ValueError, match="cannot be read"):
        read_adapter(folder)
