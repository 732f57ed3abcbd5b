"""A run with adapters, from recipe to files: what it says, leaves and refuses, and that it goes on where it stopped."""

import json
from pathlib import Path

import pytest
import torch

from seektune.io.jsonl import read_records
from seektune.lora.files import load_adapter
from seektune.lora.format import read_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.recipe.recipe import Recipe
from seektune.workflows.train import train

LORA = {"targets": ["attn", "ffn.experts"], "rank": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy_config) -> Path:
    """Released-format weights with widths that FP4 can hold."""
    config = toy_config(vocab_size=512, hidden_size=64, moe_intermediate_size=32)
    folder = tmp_path_factory.mktemp("base") / "model"
    DeepseekV4ForCausalLM(config).save_pretrained(folder, format="released")
    return folder


@pytest.fixture
def lora(recipe, base):
    def make(**changes) -> Recipe:
        mine = {"model__config": None, "model__weights": str(base), "model__quantized": True, "lora": LORA}
        return recipe(**(mine | changes))

    return make


def run(recipe: Recipe, folder: Path) -> Path:
    return train(recipe.model_copy(update={"run_dir": str(folder)}), "made", (), folder.parent)


@pytest.mark.slow
def test_a_run_leaves_adapters_that_load_on_the_base(lora, base, tmp_path, capsys):
    folder = run(lora(), tmp_path / "run")
    said = capsys.readouterr().out
    assert "LoRA of rank 2, alpha 32, on layers.N.attn.wq_a (4)" in said
    assert "router, indexer and balancing biases too" in said
    assert "none changed" in said
    assert f"merge: seektune merge {base} {folder}/adapter {folder}/merged --to bf16" in said
    assert not (folder / "model").exists()
    changes, config, _ = read_adapter(folder / "adapter")
    assert {name.split(".")[-1] for name in changes} == {"wq_a", "wq_b", "wkv", "wo_a", "wo_b", "w1", "w2", "w3"}
    assert config["base_model_name_or_path"] == str(base)
    assert "targets" in (folder / "adapter" / "recipe.yaml").read_text()
    model = DeepseekV4ForCausalLM.from_pretrained(base, quantized=True)
    ids = torch.randint(512, (1, 20))
    plain = model(ids).logits
    load_adapter(model, folder / "adapter")
    assert not torch.equal(model(ids).logits, plain)
    assert "adapter" in (folder / "report.html").read_text()
    again = run(lora(), tmp_path / "run")
    assert again == folder
    assert "finished" in capsys.readouterr().out


@pytest.mark.slow
def test_packed_or_decoded_and_resumed_or_not_the_losses_are_the_same(lora, tmp_path):
    found = []
    for name, changes in {"quantized": {}, "decoded": {"model__quantized": False}}.items():
        folder = run(lora(**changes), tmp_path / name)
        found.append([line["loss"] for line in read_records(folder / "metrics.jsonl")])
    assert found[0] == found[1]
    again = lora(steps=3, resume=str(tmp_path / "quantized" / "checkpoints" / "step-000003"))
    resumed = run(again.model_copy(update={"steps": 4}), tmp_path / "more")
    assert [line["step"] for line in read_records(resumed / "metrics.jsonl")][-1] == 4


@pytest.mark.slow
def test_random_weights_are_packed_as_an_export_would(recipe, toy_config, tmp_path):
    config = toy_config(vocab_size=512, hidden_size=64, moe_intermediate_size=32)
    config.save(tmp_path)
    made = recipe(model__config=str(tmp_path / "config.json"), model__quantized=True, lora=LORA)
    folder = run(made, tmp_path / "run")
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] is None


@pytest.mark.slow
def test_what_cannot_be_is_refused_before_anything_is_made(lora, recipe, tmp_path):
    with pytest.raises(ValueError, match=r"lora\.targets: attn\.wqb matches nothing.*did you mean attn\.wq_b"):
        run(lora(lora={"targets": ["attn.wqb"]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"model\.quantized weights cannot be trained"):
        recipe(model__quantized=True)
    with pytest.raises(ValueError, match="bias_update_speed must be 0"):
        lora(loss={"bias_update_speed": 0.001})
    with pytest.raises(ValueError, match="cannot be stored as fp4"):
        run(recipe(model__quantized=True, lora={"targets": ["attn"]}), tmp_path / "run")


@pytest.mark.slow
def test_a_run_begins_from_an_adapter_that_fits(lora, tmp_path):
    first = run(lora(), tmp_path / "first") / "adapter"
    # a rate too small to move what is there
    still = {"optimizer__lr": 1e-30, "optimizer__weight_decay": 0.0}
    for offload in ("none", "stream"):
        begun = run(lora(lora=LORA | {"adapter": str(first)}, model__offload=offload, **still), tmp_path / offload)
        before, after = (read_adapter(folder)[0] for folder in (first, begun / "adapter"))
        assert all(torch.equal(before[name].b, after[name].b) for name in before)
    for changes, complaint in (
        ({"rank": 4}, r"lora\.adapter: .* is of shape \[2, 64\], this model needs \[4, 64\]"),
        ({"alpha": 8}, r"lora\.adapter: .* multiplies the change of .* by 16, this model by 4"),
        ({"targets": ["attn"]}, r"lora\.adapter: .*ffn\.experts\.w1 carries an adapter in only one"),
        ({"adapter": str(tmp_path)}, r"lora\.adapter: .* is not an adapter: it has no adapter_config\.json"),
    ):
        with pytest.raises(ValueError, match=complaint):
            run(lora(lora=LORA | {"adapter": str(first)} | changes), tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
