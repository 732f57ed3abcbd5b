"""DSpark stages are carried byte for byte: through loading, training, converting, merging and every format."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from seektune.checkpoint.convert import convert
from seektune.checkpoint.formats import FORMATS
from seektune.lora.files import load_adapter, save_adapter
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.merge import merge
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.workflows.inspect import read_card
from seektune.workflows.verify import verify
from tests.checkpoint.reader import Tensors, raw
from tests.conftest import DSPARK

SIZES = {"hidden_size": 64, "moe_intermediate_size": 32}
LAYER = 140_000
"""Bytes of a shard that holds a layer of the release."""


@pytest.fixture(scope="module")
def release(toy_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the released format, one shard per layer, with three DSpark stages."""
    folder = tmp_path_factory.mktemp("dspark")
    toy_model(torch.float32, drafter=True, **SIZES, **DSPARK).save_pretrained(folder / "one", format="released")
    convert(folder / "one", folder / "model", "released", shard_bytes=LAYER)
    return folder / "model"


def stages(folder: Path) -> Tensors:
    return {name: value for name, value in raw(folder).items() if name.startswith("mtp.")}


@pytest.mark.slow
def test_the_stages_are_low_bit(release):
    """So that decoding and encoding them again would not go unnoticed."""
    dtypes = {name: dtype for name, (dtype, _, _) in stages(release).items()}
    assert dtypes["mtp.0.main_proj.weight"] == dtypes["mtp.1.attn.wq_a.weight"] == "F8_E4M3"
    assert dtypes["mtp.2.ffn.experts.3.w1.weight"] == "I8"
    assert dtypes["mtp.2.markov_head.markov_w1.weight"] == "BF16"


def test_each_stage_has_a_shard(release):
    placed = json.loads((release / "model.safetensors.index.json").read_text())["weight_map"]
    last = list(dict.fromkeys(placed.values()))[-3:]
    assert [placed[f"mtp.{stage}.attn_norm.weight"] for stage in range(3)] == last
    assert {file for name, file in placed.items() if not name.startswith("mtp.")}.isdisjoint(last)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_carries_the_stages(release, tmp_path, format):
    convert(release, tmp_path / "out", format, shard_bytes=LAYER)
    assert stages(tmp_path / "out") == stages(release)
    card = read_card(tmp_path / "out")
    assert card.complete
    assert card.format == format
    # and back: the backbone of a format without loss, and the stages of every one
    convert(tmp_path / "out", tmp_path / "again", "released", original=release, shard_bytes=LAYER)
    assert raw(tmp_path / "again") == raw(release)


def trained_a_step(model: DeepseekV4ForCausalLM) -> None:
    tokens = torch.arange(24)[None] % 64
    model(tokens, labels=tokens, with_logits=False).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


@pytest.mark.slow
def test_training_leaves_what_it_does_not_train(release, tmp_path):
    model = DeepseekV4ForCausalLM.from_pretrained(release)
    assert not any(name.startswith("mtp.") for name in model.state_dict())
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("layers.2.attn.wq")
    trained_a_step(model)
    model.save_pretrained(tmp_path / "out", format="released", original=release)
    before = raw(release)
    after = raw(tmp_path / "out")
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert changed
    assert all(name.startswith("layers.2.attn.wq") for name in changed)
    again = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "out", drafter=True)
    assert len(again.mtp) == 3


@pytest.mark.slow
def test_a_merge_carries_the_stages(release, tmp_path):
    model = DeepseekV4ForCausalLM.from_pretrained(release, quantized=True)
    adapt(model, matching(model, ("attn", "ffn.experts")), AdapterShape(rank=2, alpha=2.0))
    for name, parameter in model.named_parameters():
        if ".lora." in name:
            torch.nn.init.normal_(parameter)
    save_adapter(model, tmp_path / "adapter", str(release))
    for to in ("bf16", "fp32", "mixed-bf16", "mixed-fp8"):
        merge(release, tmp_path / "adapter", tmp_path / to, to, force=True)
        assert stages(tmp_path / to) == stages(release)
        assert DeepseekV4ForCausalLM.from_pretrained(tmp_path / to).config.dspark_stages == 3


@pytest.mark.slow
def test_an_adapter_of_an_mtp_block_does_not_fit_stages(release, toy_model, tmp_path):
    """Their modules have the same names and shapes."""
    other = toy_model(torch.float32, **SIZES)
    adapt(other, matching(other, ("mtp.0.attn.wo_b",)), AdapterShape(rank=2, alpha=2.0))
    for name, parameter in other.named_parameters():
        if ".lora." in name:
            torch.nn.init.normal_(parameter)
    save_adapter(other, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"mtp\.0\.attn\.wo_b.*DSpark stages"):
        merge(release, tmp_path / "adapter", tmp_path / "out", "bf16")
    for drafter in (False, True):
        model = DeepseekV4ForCausalLM.from_pretrained(release, drafter=drafter)
        with pytest.raises(ValueError, match=r"mtp\.0\.attn\.wo_b"):
            load_adapter(model, tmp_path / "adapter")


def test_a_model_with_its_drafter_keeps_the_bytes_too(release, tmp_path):
    model = DeepseekV4ForCausalLM.from_pretrained(release, drafter=True)
    model.save_pretrained(tmp_path / "out", format="released", original=release)
    assert raw(tmp_path / "out") == raw(release)


def test_a_new_model_has_no_stages_to_export(toy_config, tmp_path):
    """Its config says so, or other loaders would look for them."""
    DeepseekV4ForCausalLM(toy_config(**DSPARK)).save_pretrained(tmp_path / "out")
    assert not stages(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not any(key.startswith("dspark_") for key in config)
    assert config["compress_ratios"] == DSPARK["compress_ratios"][:4]
    assert read_card(tmp_path / "out").complete


def test_a_missing_stage_is_named_before_work_begins(release, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(release, broken)
    index = json.loads((broken / "model.safetensors.index.json").read_text())
    last = index["weight_map"]["mtp.2.norm.weight"]
    (broken / last).unlink()
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != last}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks mtp\.2\."):
        DeepseekV4ForCausalLM.from_pretrained(broken)
    card = read_card(broken)
    assert not card.complete
    assert "mtp.2.norm.weight" in card.missing


@pytest.mark.slow
def test_verify_compares_the_stages_too(release, tmp_path, capsys):
    assert verify(str(release), str(release))
    other = DeepseekV4ForCausalLM.from_pretrained(release, drafter=True)
    with torch.no_grad():
        other.mtp[2].norm.weight += 1
    other.save_pretrained(tmp_path / "other", format="released", original=release)
    assert not verify(str(release), str(tmp_path / "other"))
    assert "mtp.2.norm.weight" in capsys.readouterr().out
