"""Exporting a model or folder to every format: untrained bytes are kept, trained values are rounded, losses named."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seektune.checkpoint.convert import Conversion, convert
from seektune.checkpoint.export import ExportReport, export_tensors
from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.save import save_weights
from seektune.checkpoint.source import FolderSource, StateSource
from seektune.kernels import dequantize_fp4, dequantize_fp8, quantize_fp4, quantize_fp8
from seektune.model.causal_lm import DeepseekV4ForCausalLM

from .reader import dtypes_and_shapes, raw

FP4 = "layers.2.ffn.experts.3.w2"
FP8 = "layers.1.attn.wq_a"
QUANTIZED = ("released", "fp8", "base")


@pytest.fixture
def model(parity_folder: Path) -> DeepseekV4ForCausalLM:
    return DeepseekV4ForCausalLM.from_pretrained(parity_folder)


def make_folder(folder: Path, **tensors: Tensor) -> Path:
    """A checkpoint folder with these tensors; `__` stands for a dot."""
    folder.mkdir()
    save_file({name.replace("__", "."): x for name, x in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def e8m0(*bytes_: int) -> Tensor:
    return torch.tensor(bytes_, dtype=torch.uint8).view(torch.float8_e8m0fnu)


def test_untrained_tensors_keep_original_bytes(model, parity_folder: Path, tmp_path: Path):
    model.save_pretrained(tmp_path / "out", format="released", original=parity_folder)
    assert raw(tmp_path / "out") == raw(parity_folder)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == json.loads((parity_folder / "config.json").read_text())


def test_bf16_model_exports_original_bytes(parity_folder: Path, tmp_path: Path):
    model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "out", format="released", original=parity_folder)
    assert raw(tmp_path / "out") == raw(parity_folder)


@pytest.mark.slow
def test_values_survive_without_original(model, parity_folder: Path, tmp_path: Path):
    """Scales may differ, but every FP4 or FP8 value is representable under the scale that the rule computes."""
    model.save_pretrained(tmp_path / "out", format="released")
    assert dtypes_and_shapes(raw(tmp_path / "out")) == dtypes_and_shapes(raw(parity_folder))
    again = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "out")
    for name, x in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], x), name


@pytest.mark.slow
def test_compressor_stays_bf16_and_ape_f32(model, tmp_path: Path):
    """A name pattern for the attention's wkv must not match wkv and wgate of the compressor."""
    for format in QUANTIZED:
        model.save_pretrained(tmp_path / format, format=format)
        found = dtypes_and_shapes(raw(tmp_path / format))
        inside = {name: dtype for name, (dtype, _) in found.items() if ".compressor." in name}
        assert {dtype for name, dtype in inside.items() if name.endswith(("wkv.weight", "wgate.weight"))} == {"BF16"}
        assert {dtype for name, dtype in inside.items() if name.endswith("ape")} == {"F32"}
        assert not any(name.endswith(".scale") for name in inside)
        assert found["layers.1.attn.wkv.weight"][0] == "F8_E4M3"
        assert found["layers.1.attn.indexer.wq_b.weight"][0] == "F8_E4M3"
        assert found["layers.1.attn.indexer.weights_proj.weight"][0] == "BF16"


@pytest.mark.slow
@torch.no_grad()
def test_trained_tensors_are_rounded_and_others_unchanged(model, parity_folder: Path, tmp_path: Path):
    expert = model.layers[2].ffn.experts.w2[3]
    expert.normal_()
    matrix = model.layers[1].attn.wq_a.weight
    matrix.normal_()
    model.layers[0].attn_norm.weight.add_(0.5)
    model.save_pretrained(tmp_path / "out", format="released", original=parity_folder)
    before, after = raw(parity_folder), raw(tmp_path / "out")
    assert dtypes_and_shapes(before) == dtypes_and_shapes(after)
    changed = {name for name in before if before[name] != after[name]}
    assert {f"{FP4}.weight", f"{FP8}.weight", "layers.0.attn_norm.weight"} <= changed
    assert changed <= {f"{stem}.{part}" for stem in (FP4, FP8) for part in ("weight", "scale")} | {
        "layers.0.attn_norm.weight"
    }
    for row in range(expert.shape[0]):
        for group in range(expert.shape[1] // 32):
            peak = expert[row, 32 * group : 32 * (group + 1)].abs().max().item()
            scale = after[f"{FP4}.scale"][2][row * (expert.shape[1] // 32) + group]
            assert scale - 127 == math.ceil(math.log2(peak / 6))
    blocks = -(-matrix.shape[1] // 128)
    for column in range(blocks):
        peak = matrix[:, 128 * column : 128 * (column + 1)].abs().max().item()
        assert after[f"{FP8}.scale"][2][column] - 127 == math.ceil(math.log2(peak / 448))
    again = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "out")
    steps = torch.tensor([2.0 ** (byte - 127) for byte in after[f"{FP4}.scale"][2]]).view(expert.shape[0], -1, 1)
    error = (again.layers[2].ffn.experts.w2[3] - expert).unflatten(1, (-1, 32)).abs()
    assert (error <= steps).all(), "half of the widest gap, from 4 to 6"
    relative = (again.layers[1].attn.wq_a.weight - matrix).abs() / matrix.abs().clamp(min=2**-6)
    assert (relative <= 2**-4).all(), "three bits of mantissa"


@pytest.mark.slow
@pytest.mark.parametrize("format", ["fp8", "base"])
def test_fp8_experts_hold_same_values(model, parity_folder: Path, tmp_path: Path, format: str):
    model.save_pretrained(tmp_path / "out", format=format, original=parity_folder)
    found = dtypes_and_shapes(raw(tmp_path / "out"))
    assert found[f"{FP4}.weight"][0] == "F8_E4M3"
    assert found[f"{FP4}.scale"][0] == "F32"
    assert found[f"{FP8}.scale"][0] == {"fp8": "F8_E8M0", "base": "F32"}[format]
    again = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "out")
    for name, x in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], x), name


def test_damaged_original_raises_and_leaves_nothing(model, parity_folder: Path, tmp_path: Path):
    original = tmp_path / "original"
    shutil.copytree(parity_folder, original)
    file = original / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=file.name):
        model.save_pretrained(tmp_path / "out", format="released", original=original)
    assert not (tmp_path / "out").exists()


def convert_steps(
    source: Path, folder: Path, *steps: str, original: Path | None = None
) -> tuple[Path, list[Conversion]]:
    """Convert through several formats; the last step gets the original."""
    done = []
    for number, step in enumerate(steps):
        last = original if number == len(steps) - 1 else None
        done.append(convert(source, folder / f"{number}-{step}", step, last))
        source = done[-1].folder
    return source, done


@pytest.mark.parametrize(
    "steps",
    [
        ("bf16", "released"),
        ("fp32", "released"),
        ("fp8", "released"),
        ("fp8", "fp8", "released"),
        ("base", "released"),
        ("base", "bf16", "fp8", "fp32", "released"),
        ("released",),
    ],
    ids="-".join,
)
@pytest.mark.slow
def test_round_trip_with_original_returns_every_byte(parity_folder: Path, tmp_path: Path, steps):
    folder, done = convert_steps(parity_folder, tmp_path, *steps, original=parity_folder)
    assert raw(folder) == raw(parity_folder)
    assert all(not step.inexact for step in done)
    assert (done[-1].copied, done[-1].converted) == (263, 0)


@pytest.mark.slow
def test_round_trip_without_original_returns_values(parity_folder: Path, tmp_path: Path):
    folder, done = convert_steps(parity_folder, tmp_path, "bf16", "released")
    assert dtypes_and_shapes(raw(folder)) == dtypes_and_shapes(raw(parity_folder))
    assert (done[-1].copied, done[-1].converted, done[-1].inexact) == (99, 164, [])
    before, after = FolderSource(parity_folder), FolderSource(folder)
    for name, _ in before.shapes():
        assert torch.equal(before.values(name), after.values(name)), name


@pytest.mark.slow
def test_base_round_trip_is_exact_for_power_of_two_scales(parity_folder: Path, tmp_path: Path):
    fp8, _ = convert_steps(parity_folder, tmp_path / "a", "fp8")
    back, done = convert_steps(fp8, tmp_path / "b", "base", "fp8")
    assert raw(back) == raw(fp8)
    assert all(not step.inexact for step in done)
    base = raw(done[0].folder)
    for name, (dtype, shape, data) in raw(fp8).items():
        if name.endswith(".scale") and dtype == "F8_E8M0":
            exponents = torch.frombuffer(bytearray(data), dtype=torch.uint8).int() - 127
            assert base[name][:2] == ("F32", shape)
            assert torch.equal(torch.frombuffer(bytearray(base[name][2]), dtype=torch.float32).log2().int(), exponents)
        else:
            assert base[name] == (dtype, shape, data)


def test_base_to_fp8_reports_rounding(tmp_path: Path):
    weight, scale = quantize_fp8(torch.randn(256, 256), power_of_two=False)
    name = "layers.0.attn.wq_a.weight"
    base = make_folder(tmp_path / "base", layers__0__attn__wq_a__weight=weight, layers__0__attn__wq_a__scale=scale)
    done = convert(base, tmp_path / "fp8", "fp8")
    assert done.inexact == [name]
    found = load_file(tmp_path / "fp8" / "model.safetensors")
    expected = quantize_fp8(dequantize_fp8(weight, scale))
    assert torch.equal(found[name].view(torch.uint8), expected[0].view(torch.uint8))
    assert convert(base, tmp_path / "base2", "base").copied == 1
    assert raw(tmp_path / "base2") == raw(base)


def test_fp8_experts_have_f32_scales_that_are_powers_of_two(tmp_path: Path):
    """The values and codes of E8M0 scales, in the dtype that engines read them in; F32 scales of base are rounded."""
    name = "layers.0.ffn.experts.0.w1"
    values = torch.randn(256, 256) * torch.logspace(-6, 3, 256)[:, None]
    for into, power_of_two in (("exact", True), ("rounded", False)):
        weight, scale = quantize_fp8(values, power_of_two)
        tensors = {f"{name}.weight": weight, f"{name}.scale": scale}
        base = make_folder(tmp_path / f"base-{into}", **{key.replace(".", "__"): x for key, x in tensors.items()})
        done = convert(base, tmp_path / into, "fp8")
        assert done.inexact == ([] if power_of_two else [f"{name}.weight"])
        found = load_file(tmp_path / into / "model.safetensors")
        expected_weight, expected_scale = quantize_fp8(dequantize_fp8(weight, scale))
        assert torch.equal(found[f"{name}.weight"].view(torch.uint8), expected_weight.view(torch.uint8))
        assert torch.equal(found[f"{name}.scale"], expected_scale.float())
        again = convert(tmp_path / into, tmp_path / f"{into}-again", "fp8")
        assert (again.copied, again.converted) == (1, 0)
        assert raw(again.folder) == raw(tmp_path / into)


@pytest.mark.parametrize(
    ("spread", "exact"),
    [(0, True), (8, True), (14, True), (15, False), (30, False)],
    ids=lambda value: str(value),
)
def test_fp4_to_fp8_is_exact_for_close_block_scales(tmp_path: Path, spread: int, exact):
    """A block's largest scale / 2^6 leaves steps of 2^-15: 0.5 in a group whose scale is 2^14 smaller is one step."""
    name = "layers.0.ffn.experts.0.w1.weight"
    packed = torch.randint(-128, 128, (128, 64), dtype=torch.int8)
    packed[0, 0] = 0x11  # 0.5, the smallest magnitude
    scale = e8m0(*[127] * (128 * 4)).view(128, 4).clone()
    scale[0, 0] = e8m0(127 - spread)[0]
    source = make_folder(
        tmp_path / "fp4", layers__0__ffn__experts__0__w1__weight=packed, layers__0__ffn__experts__0__w1__scale=scale
    )
    done = convert(source, tmp_path / "fp8", "fp8")
    assert done.inexact == ([] if exact else [name])
    found = FolderSource(tmp_path / "fp8").values(name)
    wanted = dequantize_fp4(packed, scale)
    assert torch.equal(found, wanted) == exact
    assert (found - wanted).abs().max() <= 2.0**-15, "half of the smallest step at the block's scale"


def test_fp4_rounds_to_nearest_even_under_smallest_scale(tmp_path: Path):
    values = torch.zeros(1, 32)
    values[0, :8] = torch.tensor([6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, -5.0])
    source = make_folder(tmp_path / "fp32", layers__0__ffn__experts__0__w1__weight=values)
    done = convert(source, tmp_path / "out", "released")
    assert done.inexact == ["layers.0.ffn.experts.0.w1.weight"]
    _, _, scale = raw(tmp_path / "out")["layers.0.ffn.experts.0.w1.scale"]
    assert list(scale) == [127]
    found = FolderSource(tmp_path / "out").values("layers.0.ffn.experts.0.w1.weight")
    assert found[0, :8].tolist() == [6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, -4.0]


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 400])
def test_encoding_in_bands_equals_encoding_at_once(monkeypatch: pytest.MonkeyPatch, rows: int):
    """The bytes must not depend on the bands."""
    weight = torch.randn(rows, 160) * torch.logspace(-3, 3, rows)[:, None]
    for name, encode in (("layers.0.attn.wq_a.weight", quantize_fp8), ("a.experts.0.w1.weight", quantize_fp4)):
        monkeypatch.setattr("seektune.checkpoint.stored.BAND", 128 * 160)
        (piece,) = (
            export_tensors(StateSource({name: weight}), FORMATS["released"], ExportReport())
            if "attn" in name
            else export_tensors(StateSource({"a.experts.w1": weight[None]}), FORMATS["released"], ExportReport())
        )
        found = list(piece.load().values())
        for part, whole in zip(found, encode(weight), strict=True):
            assert part.dtype == whole.dtype
            assert torch.equal(part.view(torch.uint8), whole.view(torch.uint8))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("format", QUANTIZED)
def test_low_bit_formats_reject_non_finite_values(model, tmp_path: Path, bad: float, format: str):
    with torch.no_grad():
        model.layers[1].attn.wq_a.weight[3, 3] = bad
    with pytest.raises(ValueError, match=rf"{FP8}\.weight: NaN or infinity cannot be stored as fp8"):
        model.save_pretrained(tmp_path / "out", format=format)
    assert list(tmp_path.iterdir()) == []


def test_bf16_keeps_non_finite_values(model, tmp_path: Path):
    with torch.no_grad():
        model.layers[1].attn.wq_a.weight[3, 3:5] = torch.tensor([math.nan, -math.inf])
    report = save_weights(model.state_dict(), model.config.to_dict(), tmp_path / "out", "bf16")
    assert f"{FP8}.weight" in report.converted
    assert report.inexact == [], "these weights came from FP4 and FP8, and NaN is NaN"
    found = load_file(tmp_path / "out" / "model.safetensors")[f"{FP8}.weight"]
    assert found[3, 3].isnan()
    assert found[3, 4] == -math.inf


@pytest.mark.parametrize(
    ("name", "shape", "format", "message"),
    [
        ("layers.0.ffn.experts.0.w2.weight", (8, 48), "released", r"\[8, 48\].*multiple of 32 columns.*fp4"),
        ("layers.0.attn.wq_a.weight", (8,), "fp8", r"\[8\].*only a matrix can be stored as fp8"),
    ],
)
def test_unsupported_shape_is_rejected_before_writing(
    tmp_path: Path, name: str, shape: tuple[int, ...], format: str, message: str
):
    source = make_folder(tmp_path / "in", **{name.replace(".", "__"): torch.ones(shape)})
    with pytest.raises(ValueError, match=message) as error:
        convert(source, tmp_path / "out", format)
    assert name in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_other_shape_than_original_is_encoded_again(parity_folder: Path, tmp_path: Path):
    name = f"{FP8}.weight"
    source = make_folder(tmp_path / "in", **{name.replace(".", "__"): torch.ones(64, 256)})
    done = convert(source, tmp_path / "out", "released", parity_folder)
    assert (done.copied, done.converted, done.inexact) == (0, 1, [])


def test_minus_zero_and_subnormal_bits_are_copied(tmp_path: Path):
    bits = torch.tensor([0, -0x8000, 0x7F7F, 1, -0x7FFF], dtype=torch.int16)
    source = make_folder(tmp_path / "in", norm__weight=bits.view(torch.bfloat16))
    assert convert(source, tmp_path / "out", "released").copied == 1
    assert raw(tmp_path / "out") == raw(source)
