"""Adapters for vLLM: by its rules, the files give the change that a merge adds; what it would ignore is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seektune.checkpoint.source import FolderSource
from seektune.lora.delta import LoraDelta
from seektune.lora.format import write_adapter
from seektune.lora.merge import merge
from seektune.lora.vllm import export_for_vllm
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.run_cli import seektune

LEAVES = {"wq_a", "wq_b", "wkv", "wo_b", "w1", "w2", "w3"}
"""Linear layers that vLLM 0.33 wraps and applies adapters to."""
SERVED = (
    *(f"layers.1.attn.{leaf}" for leaf in ("wq_a", "wq_b", "wkv", "wo_b")),
    *(f"layers.2.ffn.shared_experts.{leaf}" for leaf in ("w1", "w2", "w3")),
    *(f"layers.3.ffn.experts.{leaf}" for leaf in ("w1", "w2", "w3")),
)


@pytest.fixture(scope="module")
def base(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    toy_model(torch.float32, hidden_size=64, moe_intermediate_size=32).save_pretrained(folder, format="bf16")
    return folder


def change(base: Path, module: str, rank: int = 3, scaling: float = 5 / 3) -> LoraDelta:
    experts = 8 if ".experts." in module else None
    released = module.replace(".experts.", ".experts.0.") if experts else module
    rows, columns = FolderSource(base).values(f"{released}.weight").shape
    more = () if experts is None else (experts,)
    return LoraDelta(torch.randn(*more, rank, columns), torch.randn(*more, rows, rank), scaling)


def written(base: Path, folder: Path, *modules: str, **config: Any) -> Path:
    write_adapter(folder, {module: change(base, module) for module in modules}, {"base_model_name_or_path": str(base)})
    if config:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def deltas(folder: Path) -> dict[str, Tensor]:
    """scaling * B A by released name of the weight, by vLLM's rules."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")

    def of(patterns: dict[str, float], name: str, otherwise: float) -> float:
        return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)

    found = {}
    for key, a in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        assert name.rpartition(".")[2] in LEAVES & set(config["target_modules"])
        rank = of(config["rank_pattern"], name, config["r"])
        assert rank == len(a)
        scaling = of(config["alpha_pattern"], name, config["lora_alpha"]) / rank
        found[f"{name}.weight"] = scaling * tensors[key.replace("lora_A", "lora_B")].double() @ a.double()
    return found


def agree(base: Path, adapter: Path, tmp_path: Path) -> dict[str, Tensor]:
    """The exported deltas, after comparing them with what a merge adds."""
    done = export_for_vllm(adapter, tmp_path / "vllm")
    found = deltas(done.folder)
    assert len(found) == done.modules
    merge(base, adapter, tmp_path / "merged", "fp32")
    before = FolderSource(base)
    after = FolderSource(tmp_path / "merged")
    for name, _ in before.shapes():
        added = after.values(name).double() - before.values(name).double()
        expected = found.get(name, torch.zeros_like(added))
        assert (added - expected).abs().max() <= 2e-6 * after.values(name).abs().max(), name
    return found


@pytest.mark.slow
def test_deltas_are_those_of_a_merge(base, tmp_path):
    found = agree(base, written(base, tmp_path / "adapter", *SERVED), tmp_path)
    assert len(found) == 4 + 3 + 3 * 8
    config = json.loads((tmp_path / "vllm" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (3, {}, {})
    assert config["lora_alpha"] == pytest.approx(5)
    assert config["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize("matrix", ["w1", "w2", "w3"])
def test_matrices_of_experts_without_a_change_are_zeros(base, tmp_path, matrix):
    """vLLM 0.33 fails without all three matrices of every expert."""
    found = agree(base, written(base, tmp_path / "adapter", f"layers.3.ffn.experts.{matrix}"), tmp_path)
    assert len(found) == 3 * 8
    source = FolderSource(base)
    for name, delta in found.items():
        assert bool(delta.any()) == (f".{matrix}." in name)
        assert delta.shape == source.values(name).shape


def test_other_ranks_and_scalings_have_patterns(base, tmp_path):
    changes = {name: change(base, name) for name in ("layers.1.attn.wq_a", "layers.3.ffn.experts.w1")}
    changes["layers.2.attn.wq_a"] = change(base, "layers.2.attn.wq_a", rank=9, scaling=0.3)
    changes["layers.3.ffn.experts.w2"] = change(base, "layers.3.ffn.experts.w2", rank=2, scaling=5 / 3)
    write_adapter(tmp_path / "adapter", changes, {})
    agree(base, tmp_path / "adapter", tmp_path)
    config = json.loads((tmp_path / "vllm" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {"layers.2.attn.wq_a": 9, r"layers.3.ffn.experts.\d+.w2": 2}
    assert export_for_vllm(tmp_path / "adapter", tmp_path / "again").max_lora_rank == 16


def test_rslora_of_another_trainer_keeps_its_scaling(base, tmp_path):
    adapter = written(base, tmp_path / "adapter", *SERVED[:7], use_rslora=True, lora_alpha=7)
    agree(base, adapter, tmp_path)
    config = json.loads((tmp_path / "vllm" / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["lora_alpha"]) == (False, pytest.approx(7 * 3**0.5))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("layers.1.attn.wo_a", r"changes layers\.1\.attn\.wo_a: .*base's weight, without an error"),
        ("layers.2.attn.compressor.wkv", r"compressor\.wkv: .*without an error"),
        ("layers.2.attn.compressor.wgate", r"compressor\.wgate: .*without an error"),
        ("head", "changes head: vLLM 0.33 takes no adapter there"),
        ("mtp.0.e_proj", "changes nothing that vLLM applies adapters to"),
    ],
)
def test_what_vllm_would_ignore_or_reject_is_refused(base, tmp_path, module, reason):
    adapter = written(base, tmp_path / "adapter", module)
    with pytest.raises(ValueError, match=rf"{reason}.*merge it instead: seektune merge BASE"):
        export_for_vllm(adapter, tmp_path / "vllm")
    assert not (tmp_path / "vllm").exists()


def test_dora_and_large_ranks_are_refused(base, tmp_path):
    name = "layers.1.attn.wq_b"
    plain = change(base, name)
    dora = LoraDelta(plain.a, plain.b, plain.scaling, torch.ones(len(plain.b)))
    write_adapter(tmp_path / "dora", {name: dora}, {})
    with pytest.raises(ValueError, match="is a DoRA adapter, which vLLM does not load; merge it instead"):
        export_for_vllm(tmp_path / "dora", tmp_path / "vllm")
    write_adapter(tmp_path / "large", {name: change(base, name, rank=513)}, {})
    with pytest.raises(ValueError, match="has rank 513, and vLLM takes 512 at most"):
        export_for_vllm(tmp_path / "large", tmp_path / "vllm")


def test_changes_of_nothing_are_left_out(base, tmp_path):
    changes = {name: change(base, name) for name in ("layers.1.attn.wq_b", "layers.1.attn.wo_a")}
    changes["layers.1.attn.wo_a"].b.zero_()
    write_adapter(tmp_path / "adapter", changes, {})
    assert list(agree(base, tmp_path / "adapter", tmp_path)) == ["layers.1.attn.wq_b.weight"]


def test_existing_folder_is_kept(base, tmp_path):
    adapter = written(base, tmp_path / "adapter", "layers.1.attn.wq_b")
    with pytest.raises(ValueError, match="already exists and is not empty"):
        export_for_vllm(adapter, adapter)


def test_dtype_is_kept(base, tmp_path):
    adapter = written(base, tmp_path / "adapter", *SERVED[:4])
    file = adapter / "adapter_model.safetensors"
    save_file({name: x.bfloat16() for name, x in load_file(file).items()}, file)
    agree(base, adapter, tmp_path)
    assert {x.dtype for x in load_file(tmp_path / "vllm" / "adapter_model.safetensors").values()} == {torch.bfloat16}


def test_command_line(base, tmp_path):
    adapter = written(base, tmp_path / "adapter", "layers.1.attn.wq_b", "mtp.0.e_proj")
    done = seektune("adapter", "export", adapter, tmp_path / "out", "--to", "vllm")
    assert done.returncode == 0, done.stderr
    assert "note: 1 module of the MTP block left out" in done.stdout
    assert f"vllm serve {base} --enable-lora --max-lora-rank 8 --lora-modules out={tmp_path / 'out'}" in done.stdout
    assert seektune("adapter", "export", adapter, tmp_path / "out", "--to", "sglang").returncode == 2
