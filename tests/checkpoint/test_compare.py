"""Comparing two folders: equal bytes, equal values in other formats, and all kinds of differences."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seektune.checkpoint.compare import EQUAL, STATUSES, Comparison, compare
from seektune.checkpoint.convert import convert
from seektune.kernels import quantize_fp8


def make_folder(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return path


def compare_tensors(
    tmp_path: Path, a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0.0
) -> list[Comparison]:
    return list(compare(make_folder(tmp_path / "a", a), make_folder(tmp_path / "b", b), tolerance))


def compare_one(tmp_path: Path, a: Tensor, b: Tensor, tolerance: float = 0.0) -> Comparison:
    (found,) = compare_tensors(tmp_path, {"norm.weight": a}, {"norm.weight": b}, tolerance)
    return found


def test_copy_has_same_bytes(parity_folder: Path, tmp_path: Path):
    copy = shutil.copytree(parity_folder, tmp_path / "copy")
    found = list(compare(parity_folder, copy))
    assert len(found) == 263, "scales are compared with their weight"
    assert {each.status for each in found} == {"same bytes"}
    assert {each.difference for each in found} == {0.0}
    files = [parity_folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert sum(each.bytes for each in found) == sum(x.nbytes for file in files for x in load_file(file).values())


@pytest.mark.parametrize("format", ["bf16", "fp32", "fp8", "base"])
def test_converted_formats_have_same_values(parity_folder: Path, tmp_path: Path, format: str):
    done = convert(parity_folder, tmp_path / "out", format)
    found = list(compare(parity_folder, tmp_path / "out"))
    assert all(each.equal for each in found)
    assert {each.status for each in found} == {"same bytes", "same values"}
    assert sum(each.status == "same bytes" for each in found) == done.copied
    expert = next(each for each in found if each.name == "layers.2.ffn.experts.3.w2.weight")
    kind = {"bf16": "bf16", "fp32": "f32", "fp8": "fp8_f32", "base": "fp8_f32"}[format]
    assert (expert.a, expert.b) == ("fp4 [128, 64]", f"{kind} [128, 64]")


def test_largest_difference_is_reported(tmp_path: Path):
    a = torch.linspace(-1, 1, 101)
    b = a.clone()
    b[7] += 0.25
    b[9] -= 0.5
    found = compare_one(tmp_path, a, b)
    assert (found.status, found.equal, found.bytes) == ("differs", False, 404)
    assert found.difference == pytest.approx(0.5, abs=1e-7)
    assert (found.a, found.b) == ("f32 [101]", "f32 [101]")


@pytest.mark.parametrize(
    ("tolerance", "status"),
    [(0.0, "differs"), (0.124, "differs"), (0.125, "within tolerance"), (1, "within tolerance")],
)
def test_tolerance_is_inclusive(tmp_path: Path, tolerance: float, status: str):
    found = compare_one(tmp_path, torch.ones(3), torch.tensor([1.0, 0.875, 1.0]), tolerance)
    assert (found.status, found.difference) == (status, 0.125)
    assert found.equal == (status != "differs")


def test_difference_in_last_band_is_found(tmp_path: Path):
    """Values are compared in bands."""
    a = torch.zeros(3000, 700)
    b = a.clone().bfloat16()
    b[2999, 699] = 2.0**-100
    found = compare_one(tmp_path, a, b)
    assert (found.status, found.difference) == ("differs", 2.0**-100)


def test_quantized_tensors_are_compared_by_decoded_values(tmp_path: Path):
    weight, scale = quantize_fp8(torch.randn(130, 150))
    names = "layers.0.attn.wq_a.weight", "layers.0.attn.wq_a.scale"
    doubled = (scale.view(torch.uint8) + 1).view(torch.float8_e8m0fnu)
    found = compare_tensors(
        tmp_path, dict(zip(names, (weight, scale), strict=True)), dict(zip(names, (weight, doubled), strict=True))
    )
    assert len(found) == 1
    assert found[0].status == "differs"
    assert found[0].bytes == 130 * 150 + 4
    largest = (
        weight.float().abs() * scale.float().repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :150]
    ).max()
    assert found[0].difference == largest


def test_nan_infinity_and_minus_zero(tmp_path: Path):
    nan, inf = math.nan, math.inf
    cases = {
        "same bits": ([nan, inf, -inf], [nan, inf, -inf], "same bytes", 0.0),
        "only one is NaN": ([1.0, nan], [1.0, 1.0], "differs", inf),
        "opposite infinities": ([inf], [-inf], "differs", inf),
        "minus zero": ([0.0], [-0.0], "same values", 0.0),
    }
    a = {name: torch.tensor(x) for name, (x, *_) in cases.items()}
    b = {name: torch.tensor(y) for name, (_, y, *_) in cases.items()}
    found = {each.name: (each.status, each.difference) for each in compare_tensors(tmp_path, a, b, tolerance=1e300)}
    assert found == {name: (status, difference) for name, (_, _, status, difference) in cases.items()}


def test_nan_equals_nan_across_dtypes(tmp_path: Path):
    assert (
        compare_one(tmp_path, torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 1.0]).bfloat16()).status
        == "same values"
    )


def test_integers_are_compared_exactly(tmp_path: Path):
    a = torch.tensor([[2**53, 5]])
    found = compare_tensors(tmp_path, {"layers.0.ffn.gate.tid2eid": a}, {"layers.0.ffn.gate.tid2eid": a - 3})
    assert (found[0].status, found[0].difference) == ("differs", 3.0)


def test_missing_tensors_and_other_shapes(tmp_path: Path):
    a = {"norm.weight": torch.ones(4), "head.weight": torch.ones(2, 2), "embed.weight": torch.ones(2, 2)}
    b = {"norm.weight": torch.ones(5), "head.weight": torch.ones(2, 2), "hc_head_base": torch.ones(4)}
    found = {each.name: each for each in compare_tensors(tmp_path, a, b)}
    assert {name: each.status for name, each in found.items()} == {
        "embed.weight": "only in A",
        "norm.weight": "other shape",
        "head.weight": "same bytes",
        "hc_head_base": "only in B",
    }
    assert (found["norm.weight"].a, found["norm.weight"].b) == ("f32 [4]", "f32 [5]")
    assert (found["hc_head_base"].a, found["hc_head_base"].b, found["hc_head_base"].bytes) == ("", "f32 [4]", 16)
    assert {each.difference for each in found.values()} == {None, 0.0}
    assert {each.status for each in found.values() if each.equal} == {"same bytes"}


def test_scalars_and_empty_tensors(tmp_path: Path):
    a = {"scalar": torch.tensor(1.5), "empty": torch.ones(0, 3)}
    b = {"scalar": torch.tensor(1.0), "empty": torch.ones(0, 3).bfloat16()}
    assert {each.name: each.status for each in compare_tensors(tmp_path, a, b)} == {
        "scalar": "differs",
        "empty": "same values",
    }


def test_progress_ends_at_total_bytes(parity_folder: Path):
    seen: list[tuple[int, int]] = []
    found = list(compare(parity_folder, parity_folder, progress=lambda *now: seen.append(now)))
    total = sum(each.bytes for each in found)
    assert seen[-1] == (total, total)
    assert len(seen) == len(found)


def test_statuses_are_unique():
    assert len(set(STATUSES)) == len(STATUSES) == 7
    assert set(EQUAL) < set(STATUSES)


def test_damaged_folder_raises(parity_folder: Path, tmp_path: Path):
    copy = shutil.copytree(parity_folder, tmp_path / "copy")
    (copy / "model-00002-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is damaged"):
        list(compare(parity_folder, copy))
