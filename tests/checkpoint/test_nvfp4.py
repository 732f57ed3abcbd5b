"""NVFP4 weights: decoded exactly, converted to our formats, named by `inspect`, and refused for everything else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seektune.checkpoint.compare import compare
from seektune.checkpoint.convert import convert
from seektune.checkpoint.source import FolderSource
from seektune.kernels import dequantize_nvfp4
from seektune.lora.files import save_adapter
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.merge import merge
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.workflows.convert import convert_checkpoint
from seektune.workflows.inspect import read_card

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
EXPERT = "layers.0.ffn.experts.3.w2"
Tensors = dict[str, Tensor]


def encoded(values: Tensor) -> Tensors:
    """The tensors of NVIDIA's format, by the ends of their names."""
    matrix_scale = values.abs().amax() / (6 * 448)
    groups = values.unflatten(1, (-1, 16))
    scale = (groups.abs().amax(2) / 6 / matrix_scale).to(torch.float8_e4m3fn)
    unit = (groups / (scale.float() * matrix_scale).clamp(min=1e-12)[..., None]).flatten(1)
    nearest = (unit.abs()[..., None] - E2M1).abs().argmin(-1)
    codes = (nearest + 8 * (unit < 0)).to(torch.uint8)
    packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return {".weight": packed, ".weight_scale": scale, ".weight_scale_2": matrix_scale, ".input_scale": torch.ones(())}


def decoded(tensors: Tensors) -> Tensor:
    """The values by the definition of the format, in fp64, then rounded."""
    packed = tensors[".weight"]
    codes = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1).long()
    signed = torch.cat([E2M1, -E2M1]).double()[codes]
    scale = tensors[".weight_scale"].double().repeat_interleave(16, dim=1)
    return (signed * scale * tensors[".weight_scale_2"].double()).float()


@pytest.fixture(scope="module")
def repack(parity_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The release with its routed experts in NVFP4, and their values by name."""
    folder = tmp_path_factory.mktemp("nvfp4") / "model"
    shutil.copytree(parity_folder, folder, ignore=shutil.ignore_patterns("expected.safetensors", "*.index.json"))
    released = FolderSource(parity_folder)
    tensors: Tensors = {}
    for file in sorted(folder.glob("model-*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    values = {}
    for name in [name for name, _ in released.shapes() if ".experts." in name]:
        module = name.removesuffix(".weight")
        parts = encoded(released.values(name))
        del tensors[f"{module}.scale"]
        tensors |= {module + end: part for end, part in parts.items()}
        values[name] = decoded(parts)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    return folder, values


def test_every_code_and_scale_is_rounded_once() -> None:
    packed = torch.arange(256, dtype=torch.uint8).view(32, 8).repeat(256, 1)
    scale = torch.arange(256).repeat_interleave(32).to(torch.uint8).view(torch.float8_e4m3fn)[:, None]
    for matrix_scale in (torch.tensor(1.0), torch.tensor([0.000123456]), torch.tensor(2.0**-140)):
        found = dequantize_nvfp4(packed, scale, matrix_scale)
        expected = decoded({".weight": packed, ".weight_scale": scale, ".weight_scale_2": matrix_scale})
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.filterwarnings("ignore")
def test_torchao_agrees() -> None:
    module = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    values = torch.randn(64, 96)
    matrix_scale = values.abs().amax() / (6 * 448)
    theirs = module.NVFP4Tensor.to_nvfp4(values, per_tensor_scale=matrix_scale)
    found = dequantize_nvfp4(theirs.qdata, theirs.scale.view(64, 6), matrix_scale)
    torch.testing.assert_close(found, theirs.dequantize(torch.float32), rtol=2**-22, atol=0)
    assert (found - values).abs().mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("to", ["bf16", "fp32", "released"])
def test_a_repack_is_converted(repack: tuple[Path, dict[str, Tensor]], tmp_path: Path, to: str) -> None:
    folder, values = repack
    done = convert(folder, tmp_path / "out", to)
    source = FolderSource(done.folder)
    for name, expected in values.items():
        found = source.values(name)
        if to == "released":
            assert source.kind(name) == "fp4"
            assert (found - expected).norm() <= 0.2 * expected.norm()
        else:
            assert torch.equal(found, expected.to(found.dtype))
    assert done.converted >= len(values)
    assert set(done.inexact) <= values.keys()
    assert (to == "fp32") == (not done.inexact)
    assert not (done.folder / "hf_quant_config.json").exists()
    config = json.loads((done.folder / "config.json").read_text())
    assert config.get("quantization_config", {}).get("quant_method") == ("fp8" if to == "released" else None)
    DeepseekV4ForCausalLM.from_pretrained(done.folder)


def test_values_can_be_compared_and_read_by_rows(repack: tuple[Path, dict[str, Tensor]], parity_folder: Path) -> None:
    folder, values = repack
    statuses = {each.name: each.status for each in compare(folder, parity_folder)}
    assert {name for name, status in statuses.items() if status != "same bytes"} <= values.keys()
    rows = FolderSource(folder).values(f"{EXPERT}.weight", slice(3, 9))
    assert torch.equal(rows, values[f"{EXPERT}.weight"][3:9])


def test_inspect_names_it_and_other_uses_are_refused_with_the_way_out(
    repack: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    folder, _ = repack
    card = read_card(folder)
    assert card.complete
    assert card.format == "nvfp4"
    assert any("NVFP4, which can only be converted: seektune convert" in note for note in card.notes)
    for quantized in (False, True):
        with pytest.raises(ValueError, match=r"is NVFP4, which can only be converted: seektune convert SRC"):
            DeepseekV4ForCausalLM.from_pretrained(folder, quantized=quantized)


def test_names_of_transformers_are_read_too(tmp_path: Path) -> None:
    parts = encoded(torch.randn(32, 64))
    module = "model.layers.0.mlp.experts.3.down_proj"
    save_file({module + end: part for end, part in parts.items()}, tmp_path / "model.safetensors")
    source = FolderSource(tmp_path)
    assert dict(source.shapes()) == {f"{EXPERT}.weight": (32, 64)}
    assert torch.equal(source.values(f"{EXPERT}.weight"), decoded(parts))


def without(end: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != EXPERT + end}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without(".weight_scale_2"), r"w2\.weight is NVFP4, but its .*\.w2\.weight_scale_2 is missing"),
        (without(".weight_scale"), r"w2\.weight is NVFP4, but its .*\.w2\.weight_scale is missing"),
        (
            lambda tensors: tensors | {f"{EXPERT}.weight_scale": torch.zeros(32, 3).to(torch.float8_e4m3fn)},
            r"experts\.3\.w2\.weight has shape .* of its NVFP4 scales",
        ),
        (
            lambda tensors: tensors | {f"{EXPERT}.weight_scale": torch.zeros(32, 4)},
            r"its .*\.w2\.weight_scale has dtype F32, not F8_E4M3",
        ),
        (
            lambda tensors: tensors | {f"{EXPERT}.weight_scale": torch.zeros(()).to(torch.float8_e4m3fn)},
            r"experts\.3\.w2\.weight has shape .* of its NVFP4 scales",
        ),
        (
            lambda tensors: tensors | {f"{EXPERT}.weight_scale_2": torch.zeros(32)},
            r"experts\.3\.w2\.weight has shape .* of its NVFP4 scales",
        ),
    ],
)
def test_incomplete_or_contradictory_scales_are_refused(
    repack: tuple[Path, dict[str, Tensor]], tmp_path: Path, spoil: Callable[[Tensors], Tensors], said: str
) -> None:
    folder = Path(shutil.copytree(repack[0], tmp_path / "model"))
    save_file(spoil(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        convert_checkpoint(str(folder), tmp_path / "out", "bf16")
    with pytest.raises(ValueError, match=said):
        FolderSource(folder)


def test_a_scale_that_makes_values_infinite_is_found(repack: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(repack[0], tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {f"{EXPERT}.weight_scale_2": torch.tensor(float("nan"))}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"experts\.3\.w2\.weight in .* holds NaN or infinity"):
        convert(folder, tmp_path / "out", "bf16")


def test_a_merge_into_it_is_refused(
    repack: tuple[Path, dict[str, Tensor]], tmp_path: Path, toy_model: Callable[..., DeepseekV4ForCausalLM]
) -> None:
    model = toy_model(torch.float32)
    adapt(model, ["head"], AdapterShape(rank=1, alpha=1))
    init_adapters(model, seed=0)
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match="is NVFP4, which can only be converted"):
        merge(repack[0], tmp_path / "adapter", tmp_path / "out", "mixed-bf16")
