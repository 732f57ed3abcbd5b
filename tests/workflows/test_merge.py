"""Merging: exact where the format can hold the change, honest and refused where it cannot, exact again after training
through the rounding."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seektune.checkpoint.compare import compare
from seektune.checkpoint.convert import convert
from seektune.checkpoint.source import FolderSource
from seektune.cli import checkpoints as cli
from seektune.cli.errors import OutOfMemoryError
from seektune.data.step_data import StepData
from seektune.lora.delta import LoraDelta
from seektune.lora.files import load_adapter, save_adapter
from seektune.lora.format import write_adapter
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.merge import LossyMergeError, merge
from seektune.lora.merge_report import share_kept
from seektune.lora.state import adapted_modules, adapter_state
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.model import ParallelModel
from seektune.train.config import LossConfig
from seektune.train.step import train_step
from seektune.workflows.merge import doubts, merge_adapter
from tests.run_cli import seektune
from tests.train.tiny_run import made_batch

TARGETS = ("attn", "attn.compressor", "ffn.experts", "ffn.shared_experts", "embed", "head", "mtp.0")
LOW_BIT = ("attn", "ffn.experts", "ffn.shared_experts", "mtp.0")


@pytest.fixture(scope="module")
def base(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    toy_model(torch.float32, hidden_size=64, moe_intermediate_size=32).save_pretrained(folder, format="released")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def made(base: Path, folder: Path, size: float, targets=TARGETS, **shape) -> DeepseekV4ForCausalLM:
    """An adapter whose change is about `size` of each weight, saved; the model that carries it."""
    model = DeepseekV4ForCausalLM.from_pretrained(base, quantized=True)
    adapt(model, matching(model, targets), AdapterShape(**({"rank": 4, "alpha": 4.0} | shape)))
    init_adapters(model, 0)
    with torch.no_grad():
        for name, tensor in adapter_state(model).items():
            if name.endswith(".B"):
                a = model.get_parameter(name[:-1] + "A")
                tensor.normal_()
                tensor.mul_(size / (tensor.shape[-1] ** 0.5 * a.square().mean().sqrt() * math.sqrt(64)))
    save_adapter(model, folder, str(base))
    return model


def ids() -> torch.Tensor:
    return torch.randint(64, (2, 150), generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
@torch.no_grad()
def test_merged_is_unmerged_in_fp32(base, tmp_path):
    model = made(base, tmp_path / "adapter", 0.1)
    done = merge(base, tmp_path / "adapter", tmp_path / "out", "fp32")
    assert share_kept(done.kept) > 0.999999
    merged, plain = (
        DeepseekV4ForCausalLM.from_pretrained(folder)(ids(), mtp=True) for folder in (tmp_path / "out", base)
    )
    unmerged = model(ids(), mtp=True)
    assert (unmerged.logits - plain.logits).abs().max() > 0.1
    assert (merged.logits - unmerged.logits).abs().max() <= 1e-5
    assert (merged.mtp_logits - unmerged.mtp_logits).abs().max() <= 1e-5
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.slow
@torch.no_grad()
def test_into_bf16_each_value_is_rounded_once(base, tmp_path):
    made(base, tmp_path / "adapter", 0.01)
    merge(base, tmp_path / "adapter", tmp_path / "exact", "fp32")
    merge(base, tmp_path / "adapter", tmp_path / "out", "bf16")
    exact, found = FolderSource(tmp_path / "exact"), FolderSource(tmp_path / "out")
    for name, _ in exact.shapes():
        assert torch.equal(found.values(name).float(), exact.values(name).to(found.values(name).dtype).float()), name


@torch.no_grad()
@pytest.mark.slow
def test_a_dora_adapter_and_a_weighted_one_are_merged(base, tmp_path):
    model = made(base, tmp_path / "dora", 0.1, ("attn",), dora=True)
    merge(base, tmp_path / "dora", tmp_path / "out", "fp32")
    found = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "out")(ids()).logits
    assert (found - model(ids()).logits).abs().max() <= 2e-5
    made(base, tmp_path / "half", 0.1)
    merge(base, tmp_path / "half", tmp_path / "half-out", "fp32", weight=0.5)
    model = DeepseekV4ForCausalLM.from_pretrained(base)
    load_adapter(model, tmp_path / "half", weight=0.5)
    found = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "half-out")(ids()).logits
    assert (found - model(ids()).logits).abs().max() <= 1e-5


@pytest.mark.slow
def test_a_small_change_into_fp4_is_refused_with_its_share_unless_forced(base, tmp_path):
    made(base, tmp_path / "adapter", 0.01, ("ffn.experts",))
    with pytest.raises(LossyMergeError, match=r"would keep \d\.\d% of the adapter's change .*merge_into=released"):
        merge(base, tmp_path / "adapter", tmp_path / "out", "released")
    assert not (tmp_path / "out").exists()
    done = merge(base, tmp_path / "adapter", tmp_path / "out", "released", force=True)
    assert len(done.kept) == 3 * 8 * 5
    assert all(each.kind == "fp4" and 0.005 < each.change < 0.02 for each in done.kept)
    assert share_kept(done.kept) < 0.02
    report = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert report["share"] == share_kept(done.kept)
    assert len(report["tensors"]) == len(done.kept)


@pytest.mark.slow
def test_the_share_and_error_are_those_of_the_stored_bytes(base, tmp_path):
    made(base, tmp_path / "adapter", 0.2, LOW_BIT)
    done = merge(base, tmp_path / "adapter", tmp_path / "out", "released", force=True)
    merge(base, tmp_path / "adapter", tmp_path / "exact", "fp32")
    before, exact, found = FolderSource(base), FolderSource(tmp_path / "exact"), FolderSource(tmp_path / "out")
    for each in done.kept:
        w, target, stored = (source.values(each.name).double() for source in (before, exact, found))
        delta = target - w
        assert each.share == pytest.approx(float(((stored - w) * delta).sum() / delta.square().sum()), rel=1e-4)
        assert each.error == pytest.approx(float((stored - target).norm() / delta.norm()), rel=1e-4)


@pytest.mark.parametrize(("to", "kind"), [("mixed-fp8", "fp8"), ("mixed-bf16", "bf16")])
@torch.no_grad()
@pytest.mark.slow
def test_mixed_stores_what_is_changed_anew_and_the_rest_byte_for_byte(base, tmp_path, to, kind):
    model = made(base, tmp_path / "adapter", 0.05, ("ffn.experts", "layers.1.attn.wq_b"))
    done = merge(base, tmp_path / "adapter", tmp_path / "out", to)
    changed = {each.name for each in done.kept}
    expert = "fp8_f32_pow2" if kind == "fp8" else kind
    assert {each.kind for each in done.kept if ".experts." in each.name} == {expert}
    assert {each.kind for each in done.kept if ".experts." not in each.name} == {kind}
    assert share_kept(done.kept) > 0.9
    for each in compare(base, tmp_path / "out"):
        assert (each.status == "same bytes") != (each.name in changed), each
    merged = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "out", quantized=True)
    # the largest difference is where another expert or entry is chosen
    assert (merged(ids()).logits - model(ids()).logits).abs().median() < (0.03 if kind == "fp8" else 0.01)
    if kind == "bf16":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert "layers.1.attn.wq_b" in config["quantization_config"]["modules_to_not_convert"]


def trained_adapter(base, folder, merge_into):
    """A model whose adapter was trained for a merge into a format, or for none, and the adapter's folder."""
    data = StepData.of([made_batch(0), made_batch(1)])
    model = DeepseekV4ForCausalLM.from_pretrained(base, quantized=True)
    adapt(model, matching(model, LOW_BIT), AdapterShape(rank=4, alpha=8.0, merge_into=merge_into))
    init_adapters(model, 0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for number in range(1, 9):
        train_step(ParallelModel.alone(model), optimizer, data, number, 3e-3, LossConfig(), 1.0)
    save_adapter(model, folder, str(base))
    return model, folder


@pytest.mark.slow
def test_trained_through_the_rounding_the_merged_model_computes_what_training_saw(base, tmp_path):
    """The same adapter rounded after ordinary training is another model."""
    ordinary = trained_adapter(base, tmp_path / "ordinary", None)
    for format in ("released", "fp8"):
        rounded = trained_adapter(base, tmp_path / format, format)
        for (model, adapter), into in ((rounded, format), (ordinary, None)):
            out = tmp_path / f"{format}-{into}"
            done = merge(base, adapter, out, format, force=into is None)
            merged = DeepseekV4ForCausalLM.from_pretrained(out, quantized=True)
            with torch.no_grad():
                apart = float((merged(ids()).logits - model(ids()).logits).abs().max())
            assert len(done.kept) > 100
            assert apart > 1e-2 if into is None else apart <= 1e-5


@pytest.mark.slow
def test_what_does_not_fit_is_refused_by_name(base, tmp_path, toy_model):
    made(base, tmp_path / "adapter", 0.1)
    other = tmp_path / "other"
    toy_model(torch.float32, num_hidden_layers=3, compress_ratios=[0, 4, 128, 0]).save_pretrained(other)
    with pytest.raises(ValueError, match=r"changes embed\.weight with shape \[64, 64\], but the base has \[64, 32\]"):
        merge(other, tmp_path / "adapter", tmp_path / "out", "fp32")
    with pytest.raises(ValueError, match=r"format 'fp9' is unknown.*mixed-fp8"):
        merge(base, tmp_path / "adapter", tmp_path / "out", "fp9")
    with pytest.raises(ValueError, match=r"is not an adapter: it has no adapter_config\.json"):
        merge(base, base, tmp_path / "out", "fp32")


def experts(count: int, name: str = "layers.0.ffn.experts.w2") -> dict[str, LoraDelta]:
    return {name: LoraDelta(torch.randn(count, 2, 32), torch.randn(count, 64, 2), 1.0)}


@pytest.mark.parametrize("count", [4, 16])
def test_another_number_of_experts_is_refused(base, tmp_path, count):
    write_adapter(tmp_path / "adapter", experts(count), {})
    with pytest.raises(ValueError, match=rf"experts\.w2 of {count} experts, but the base has 8"):
        merge(base, tmp_path / "adapter", tmp_path / "out", "fp32")


def test_a_weight_that_means_nothing_is_refused(base, tmp_path):
    write_adapter(tmp_path / "plain", experts(8), {})
    name, rows = "layers.0.attn.wq_b", FolderSource(base).values("layers.0.attn.wq_b.weight").shape
    dora = LoraDelta(torch.randn(2, rows[1]), torch.randn(rows[0], 2), 1.0, torch.ones(rows[0]))
    write_adapter(tmp_path / "dora", {name: dora}, {})
    for adapter, weight, said in (
        ("plain", math.nan, "a finite number, not nan"),
        ("plain", math.inf, "a finite number, not inf"),
        ("dora", 0.5, "DoRA adapter, which only supports weight 1"),
        ("plain", 1e39, r"experts\.0\.w2\.weight is not finite after the merge"),
    ):
        with pytest.raises(ValueError, match=said):
            merge(base, tmp_path / adapter, tmp_path / "out", "bf16", weight)
        assert not (tmp_path / "out").exists()


def test_what_training_saw_has_weight_1_and_its_format_may_be_mixed(base, tmp_path):
    """Another weight is another rounding; FP8 is FP8 wherever it stands."""
    name = "layers.0.ffn.experts.w2"
    small = {name: LoraDelta(torch.randn(8, 2, 32), torch.randn(8, 64, 2) * 1e-3, 1.0)}
    write_adapter(tmp_path / "adapter", small, {}, merge_into="fp8")
    merge(base, tmp_path / "adapter", tmp_path / "out", "mixed-fp8")
    with pytest.raises(LossyMergeError, match=r"lora\.merge_into=fp8, or merge with --to mixed-bf16 or bf16;"):
        merge(base, tmp_path / "adapter", tmp_path / "half", "mixed-fp8", 0.5)
    with pytest.raises(LossyMergeError, match="--to fp32 keeps everything;"):
        merge(base, tmp_path / "adapter", tmp_path / "tiny", "bf16", 1e-4)


def test_a_link_to_an_empty_folder_is_filled_and_stays_a_link(base, tmp_path):
    write_adapter(tmp_path / "adapter", experts(8), {})
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    merge(base, tmp_path / "adapter", tmp_path / "out", "bf16")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "config.json").is_file()
    with pytest.raises(ValueError, match="cannot be created"):
        merge(base, tmp_path / "adapter", base / "config.json" / "out", "bf16")


@pytest.mark.slow
def test_what_a_new_format_rounds_beside_the_adapter_is_counted(toy_model, base, tmp_path, capsys):
    """As many tensors as a conversion rounds, less the one that is changed."""
    made(base, tmp_path / "adapter", 0.1, ("layers.0.attn.wq_b",))
    toy_model(torch.float32, hidden_size=64, moe_intermediate_size=32).save_pretrained(tmp_path / "wide", format="fp32")
    merge_adapter(str(tmp_path / "wide"), tmp_path / "adapter", tmp_path / "out", "fp8", 1.0, True)
    converted = convert(tmp_path / "wide", tmp_path / "converted", "fp8")
    exact, rounded = converted.converted - len(converted.inexact), len(converted.inexact) - 1
    assert rounded > 100
    said = f"1 changed, {converted.copied} copied byte for byte, {exact} re-encoded exactly, {rounded} rounded"
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_the_verb_says_what_is_kept(base, tmp_path):
    made(base, tmp_path / "adapter", 0.02, ("ffn.experts", "attn.wq_b"))
    words = ["merge", base, tmp_path / "adapter", tmp_path / "out", "--to"]
    refused = seektune(*words, "released")
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    done = seektune(*words, "mixed-bf16")
    assert done.returncode == 0, done.stderr
    assert "adapter changed are bf16" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "layers.N.ffn.experts.N.w1.weight  bf16" in done.stdout
    assert "of the whole change 99." in done.stdout or "of the whole change 100.0%" in done.stdout


@pytest.mark.slow
def test_carriers_of_a_merged_checkpoint_are_none(base, tmp_path):
    made(base, tmp_path / "adapter", 0.1, ("attn",))
    merge(base, tmp_path / "adapter", tmp_path / "out", "bf16")
    assert not list(adapted_modules(DeepseekV4ForCausalLM.from_pretrained(tmp_path / "out")))


def test_too_little_disk_space_is_rejected_before_writing(base, tmp_path, monkeypatch):
    write_adapter(tmp_path / "adapter", experts(8), {})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"has 1\.00 kB free, but \d+\.\d\d [kM]B are needed"):
        merge(base, tmp_path / "adapter", tmp_path / "out", "bf16")
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_another_base_than_the_one_it_names_is_noted(base, tmp_path, capsys):
    flash, hub = "deepseek-ai/DeepSeek-V4-Flash", tmp_path / "snapshots"

    def told(named: str | None, revision: str | None, given: str, place: Path) -> str:
        write_adapter(tmp_path / "adapter", experts(8), {"base_model_name_or_path": named, "revision": revision})
        return " ".join(doubts(given, place, tmp_path / "adapter"))

    assert not told(None, None, str(base), base)
    assert not told(f"{base}/../{base.name}", None, str(base), base)
    assert not told(flash, "abc", flash, hub / "abc")
    assert "commit abc of" in told(flash, "abc", flash, hub / "def")
    assert "trained on a?[31m?;" in told("a\x1b[31m\0", None, str(base), base)
    assert f"trained on {flash};" in told(flash, "abc", str(base), base)
    merge_adapter(str(base), tmp_path / "adapter", tmp_path / "out", "bf16", 1.0, False)
    assert f"trained on {flash};" in capsys.readouterr().out


def test_memory_that_does_not_suffice_is_told_without_words_about_training(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("seektune.workflows.merge.merge_adapter", fail)
    with pytest.raises(OutOfMemoryError, match="out of memory; the largest changed tensor needs room"):
        cli.merge("base", tmp_path, tmp_path / "out", "bf16")()
