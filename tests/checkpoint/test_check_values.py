"""What no model can use is found wherever a checkpoint is read, and before anything is written from it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seektune.checkpoint.check_values import check_values
from seektune.checkpoint.convert import convert
from seektune.checkpoint.formats import QUANTIZED
from seektune.checkpoint.lowbit import is_finite
from seektune.checkpoint.source import FolderSource
from seektune.checkpoint.stored import Stored, all_finite
from seektune.lora.delta import LoraDelta
from seektune.lora.format import write_adapter
from seektune.lora.merge import merge
from seektune.model.causal_lm import DeepseekV4ForCausalLM

FP4 = "layers.0.ffn.experts.0.w1"
FP8 = "layers.0.attn.wq_a"
TABLE = "layers.0.ffn.gate.tid2eid"


def with_first(x: Tensor, value: float) -> Tensor:
    """The tensor with another first element; a byte if its elements are bytes."""
    raw = x.view(torch.uint8) if x.element_size() == 1 else x
    raw = raw.clone()
    raw.view(-1)[0] = value
    return raw.view(x.dtype)


def damaged(source: Path, copy: Path, name: str, value: float) -> Path:
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("expected*"))
    for file in copy.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            save_file(tensors | {name: with_first(tensors[name], value)}, file, {"format": "pt"})
    return copy


DAMAGE = {
    "NaN scale of FP4": (f"{FP4}.scale", 255, FP4),
    "scale of FP4 that overflows": (f"{FP4}.scale", 254, FP4),
    "NaN scale of FP8": (f"{FP8}.scale", 255, FP8),
    "NaN code of FP8": (f"{FP8}.weight", 127, FP8),
    "infinite head": ("head.weight", float("inf"), "head"),
    "NaN sink": ("layers.0.attn.attn_sink", float("nan"), "layers.0.attn.attn_sink"),
    "table beyond the experts": (TABLE, 10**6, TABLE),
    "table below the experts": (TABLE, -1, TABLE),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value", "said"), DAMAGE.values(), ids=DAMAGE)
def test_every_way_in_refuses_damaged_values_by_name(
    parity_folder: Path, tmp_path: Path, name: str, value: float, said: str
) -> None:
    folder = damaged(parity_folder, tmp_path / "model", name, value)
    write_adapter(
        tmp_path / "adapter", {"layers.1.attn.wq_a": LoraDelta(torch.zeros(1, 128), torch.zeros(64, 1), 1.0)}, {}
    )
    match = f"{said}.*(holds NaN or infinity|lists an expert that does not exist)"
    for quantized in (False, True):
        with pytest.raises(ValueError, match=match):
            DeepseekV4ForCausalLM.from_pretrained(folder, quantized=quantized)
    for format in ("bf16", "fp8", "released"):
        with pytest.raises(ValueError, match=match):
            convert(folder, tmp_path / "out", format)
    with pytest.raises(ValueError, match=match):
        merge(folder, tmp_path / "adapter", tmp_path / "out", "bf16", force=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter", "model"]


def test_streamed_weights_that_are_not_quantized_are_searched(parity_folder: Path, tmp_path: Path) -> None:
    folder = damaged(parity_folder, tmp_path / "model", "head.weight", float("nan"))
    with pytest.raises(ValueError, match=r"head\.weight .*holds NaN"):
        DeepseekV4ForCausalLM.from_pretrained(folder, quantized=True, streamed=True)


def test_sound_values_pass_and_their_bytes_are_counted(parity_folder: Path) -> None:
    source = FolderSource(parity_folder)
    seen: list[tuple[int, int]] = []
    check_values(source, lambda done, total: seen.append((done, total)))
    total = sum(source.size(name) for name, _ in source.shapes())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("scale", [2.0**-127, 1.0, 2.0**118, 2.0**119, 2.0**120, 2.0**125, 2.0**126, 2.0**127])
def test_low_bit_tensors_are_judged_by_what_they_decode_to(kind: str, scale: float) -> None:
    """Every code with every scale: the judgement on bytes is that on the decoded values."""
    quantized = QUANTIZED[kind]
    codes = torch.arange(256, dtype=torch.uint8)
    for code in codes:
        weight = code.repeat(128, 128 // quantized.packing).view(quantized.dtype)
        rows, columns = quantized.scale_shape(tuple(weight.shape))
        stored = Stored(kind, weight, torch.full((rows, columns), scale).to(quantized.scale_dtype))
        assert is_finite(stored) == all_finite(stored.values()), int(code)


def test_a_value_that_only_fp64_holds_is_not_finite() -> None:
    assert all_finite(torch.tensor([3e38, -3e38]))
    assert not all_finite(torch.tensor([1e300], dtype=torch.float64))
    assert not all_finite(torch.tensor([[1.0, torch.nan]]))
    assert all_finite(torch.tensor([2**62]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_single_bad_value_is_found_wherever_it_is(dtype: torch.dtype, bad: float) -> None:
    for place in (0, 1, 31, 500, 998, 999):
        values = torch.randn(999, dtype=dtype) if place < 999 else torch.zeros(1000, dtype=dtype)
        assert all_finite(values)
        values[place] = bad
        assert not all_finite(values)
    assert all_finite(torch.empty(0, 3, dtype=dtype))
