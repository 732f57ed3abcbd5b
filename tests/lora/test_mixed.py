"""Mixed results of a merge: fused layers of one kind, and the config keys by which engines find other kinds."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.checkpoint.engine_names import engine_names, fused
from seektune.checkpoint.source import FolderSource
from seektune.lora.delta import LoraDelta
from seektune.lora.format import write_adapter
from seektune.lora.merge import Merge, merge
from seektune.model.causal_lm import DeepseekV4ForCausalLM

BLOCKS = ("layers.0", "layers.1", "layers.2", "layers.3", "mtp.0")


@pytest.fixture(scope="module")
def base(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    toy_model(torch.float32, hidden_size=64, moe_intermediate_size=32).save_pretrained(folder, format="released")
    return folder


def change(base: Path, module: str) -> LoraDelta:
    """A change as large as the weight; of a module of all experts, if the name is theirs."""
    source = FolderSource(base)
    experts = ".experts." in module
    released = module.replace(".experts.", ".experts.0.") if experts else module
    rows, columns = source.values(f"{released}.weight").shape
    count = (len([name for name, _ in source.shapes() if name.startswith(module.rpartition(".")[0] + ".")]) // 3,)
    more = count if experts else ()
    return LoraDelta(torch.randn(*more, 2, columns), torch.randn(*more, rows, 2), 1.0)


def merged(base: Path, folder: Path, to: str, *modules: str) -> tuple[Merge, FolderSource, Mapping[str, Any]]:
    write_adapter(folder / "adapter", {module: change(base, module) for module in modules}, {})
    done = merge(base, folder / "adapter", folder / "out", to, force=True)
    return done, FolderSource(folder / "out"), json.loads((folder / "out" / "config.json").read_text())


def experts_of(source: FolderSource, *blocks: str) -> set[str]:
    return {
        source.kind(name) for name, _ in source.shapes() if name.startswith(tuple(f"{b}.ffn.experts." for b in blocks))
    }


def test_bf16_partners_of_fused_layers_are_converted_exactly(base, tmp_path):
    done, out, config = merged(base, tmp_path, "mixed-bf16", "layers.1.attn.wq_a", "layers.2.ffn.shared_experts.w3")
    partners = ("layers.1.attn.wkv.weight", "layers.2.ffn.shared_experts.w1.weight")
    assert (done.converted, done.inexact) == (2, [])
    before = FolderSource(base)
    for name in partners:
        assert (before.kind(name), out.kind(name)) == ("fp8", "bf16")
        assert torch.equal(out.values(name).float(), before.values(name))
    assert out.kind("layers.1.attn.wq_b.weight") == "fp8"
    assert out.kind("layers.1.attn.compressor.wkv.weight") == "bf16"
    skipped = config["quantization_config"]["modules_to_not_convert"]
    assert {"layers.1.attn.wq_a", "layers.1.attn.wkv", "model.layers.1.self_attn.wqkv_a"} <= set(skipped)
    assert {"layers.2.ffn.shared_experts.w1", "layers.2.ffn.shared_experts.w3"} <= set(skipped)
    assert not any(name.startswith("model.") and "shared_experts" in name for name in skipped)
    assert done.notes == ["note: SGLang does not load a shared expert in bf16 beside FP8 matrices; vLLM does"]


def test_bf16_experts_of_a_layer_are_of_one_kind(base, tmp_path):
    _, out, config = merged(base, tmp_path, "mixed-bf16", "layers.3.ffn.experts.w2")
    assert experts_of(out, "layers.3") == {"bf16"}
    assert experts_of(out, "layers.0", "layers.1", "layers.2", "mtp.0") == {"fp4"}
    assert "model.layers.3.mlp.experts" in config["quantization_config"]["modules_to_not_convert"]
    assert config["expert_dtype"] == "fp4"


def test_the_mtp_block_is_named_as_the_layer_after_the_last(base, tmp_path):
    done, _, config = merged(base, tmp_path, "mixed-bf16", "mtp.0.e_proj", "mtp.0.attn.wo_a")
    skipped = set(config["quantization_config"]["modules_to_not_convert"])
    layers = config["num_hidden_layers"]
    assert {"mtp.0.e_proj", f"layers.{layers}.e_proj", "model.e_proj"} <= skipped
    assert {"mtp.0.attn.wo_a", f"layers.{layers}.attn.wo_a", "model.decoder.self_attn.wo_a"} <= skipped
    assert done.notes == ["note: SGLang needs SGLANG_OPT_FP8_WO_A_GEMM=0 to load wo_a in bf16"]


def test_a_second_mixed_merge_keeps_the_names_of_the_first(base, tmp_path):
    merged(base, tmp_path, "mixed-bf16", "layers.1.attn.wq_b")
    (tmp_path / "again").mkdir()
    _, _, config = merged(tmp_path / "out", tmp_path / "again", "mixed-bf16", "layers.2.attn.wq_b")
    assert {"layers.1.attn.wq_b", "layers.2.attn.wq_b"} <= set(config["quantization_config"]["modules_to_not_convert"])


def test_fp8_experts_everywhere_are_named_so(base, tmp_path):
    """The MTP block, too, as config.json has one kind for all routed experts."""
    blocks = [f"{block}.ffn.experts.w1" for block in BLOCKS if block != "mtp.0"]
    done, out, config = merged(base, tmp_path, "mixed-fp8", *blocks)
    assert experts_of(out, *BLOCKS) == {"fp8_f32"}
    assert (config["expert_dtype"], done.notes, done.inexact) == ("fp8", [], [])
    assert "modules_to_not_convert" not in config["quantization_config"]
    before = FolderSource(base)
    for name in ("layers.2.ffn.experts.3.w2.weight", "mtp.0.ffn.experts.0.w1.weight"):
        assert torch.equal(out.values(name), before.values(name))


def test_fp8_experts_in_some_layers_are_noted(base, tmp_path):
    done, out, config = merged(base, tmp_path, "mixed-fp8", "layers.1.ffn.experts.w1", "layers.1.attn.wq_a")
    assert (experts_of(out, "layers.1"), experts_of(out, "layers.2")) == ({"fp8_f32"}, {"fp4"})
    assert out.kind("layers.1.attn.wq_a.weight") == "fp8"
    assert config["expert_dtype"] == "fp4"
    assert len(done.notes) == 1
    assert "--to fp8 stores all as FP8" in done.notes[0]


@pytest.mark.slow
def test_fp8_into_a_base_with_f32_scales_keeps_their_dtype_and_other_bytes(toy_model, tmp_path):
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32}
    toy_model(torch.float32, **sizes).save_pretrained(tmp_path / "base", format="base")
    modules = ("layers.1.attn.wq_a", "layers.1.ffn.experts.w1")
    done, out, _ = merged(tmp_path / "base", tmp_path, "mixed-fp8", *modules)
    assert out.kind("layers.1.attn.wq_a.weight") == "fp8_f32"
    assert (len(done.kept), done.converted, done.notes) == (1 + 8, 0, [])
    scale = out.stored("layers.1.attn.wq_a.weight").scale
    assert torch.equal(scale.log2(), scale.log2().round())
    assert not any(name.endswith(("w2.weight", "w3.weight")) for name in done.inexact)


@pytest.mark.slow
def test_keys_that_only_other_libraries_read_are_kept(base, tmp_path):
    config = json.loads((base / "config.json").read_text())
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").symlink_to(base / "model.safetensors")
    (source / "config.json").write_text(json.dumps({**config, "transformers_version": "4.57.1"}))
    for to in ("bf16", "mixed-bf16"):
        (tmp_path / to).mkdir()
        _, _, written = merged(source, tmp_path / to, to, "layers.1.attn.wq_b")
        assert written["transformers_version"] == "4.57.1"


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "layers.5.attn.wkv",
            {"layers.5.attn.wkv", "model.layers.5.self_attn.wkv", "model.layers.5.self_attn.wqkv_a"},
        ),
        (
            "layers.5.attn.indexer.wq_b",
            {"layers.5.attn.indexer.wq_b", "model.layers.5.self_attn.indexer.wq_b"},
        ),
        ("layers.5.ffn.experts.17.w3", {"layers.5.ffn.experts.17.w3", "model.layers.5.mlp.experts"}),
        (
            "mtp.0.ffn.experts.17.w3",
            {"mtp.0.ffn.experts.17.w3", "layers.43.ffn.experts.17.w3", "model.decoder.mlp.experts"},
        ),
        ("mtp.0.ffn.shared_experts.w2", {"mtp.0.ffn.shared_experts.w2", "layers.43.ffn.shared_experts.w2"}),
    ],
)
def test_names_of_engines(module: str, names: set[str]):
    assert set(engine_names(module, 43)) == names


def test_fused_layers():
    assert fused("layers.1.attn.wq_a") == fused("layers.1.attn.wkv") != fused("layers.2.attn.wkv")
    assert fused("layers.1.ffn.experts.0.w1") == fused("layers.1.ffn.experts.7.w2")
    assert fused("layers.1.ffn.shared_experts.w2") not in (fused("layers.1.ffn.shared_experts.w1"), "")
    assert fused("layers.1.attn.compressor.wkv") == "layers.1.attn.compressor.wkv"
