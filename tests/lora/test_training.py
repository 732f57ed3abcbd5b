"""LoRA training changes and saves only adapters, and resumes exactly."""

import json

import pytest
import torch

from seektune.checkpoint import tensor_names
from seektune.checkpoint.formats import FORMATS
from seektune.data.step_data import StepData
from seektune.lora.build import add_adapters
from seektune.lora.config import LoraConfig
from seektune.lora.format import read_adapter
from seektune.lora.frozen_digest import frozen_digest
from seektune.lora.state import adapter_state, base_state
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.quantized import quantize_modules
from seektune.parallel.lora import load_adapter, save_adapter
from seektune.parallel.model import ParallelModel
from seektune.train.checkpoints import complete_checkpoints
from seektune.train.config import LossConfig
from seektune.train.step import train_step
from tests.read_run import losses
from tests.train.runs import go, same_state
from tests.train.tiny_run import CONFIG, made_batch

EVERYTHING = ("attn", "attn.compressor", "ffn.experts", "ffn.shared_experts", "embed", "head", "mtp.0")
LOSS = LossConfig(balance_weight=0.01)


def adapted(
    targets=EVERYTHING, quantized: bool = True, seed: int = 0, dtype=torch.float32, mtp: bool = True, **lora
) -> DeepseekV4ForCausalLM:
    torch.manual_seed(seed)
    model = DeepseekV4ForCausalLM(CONFIG.replace(moe_intermediate_size=32), dtype=dtype)
    if quantized:
        quantize_modules(model, FORMATS["released"].kind)
    add_adapters(model, LoraConfig(targets=targets, **({"rank": 2} | lora)), mtp=mtp, seed=0)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("lora", [{}, {"dropout": 0.2, "shared_a": True}, {"merge_into": "released"}])
def test_only_adapters_train_and_have_optimizer_state(tmp_path, quantized, lora):
    targets = EVERYTHING if "merge_into" not in lora else ("attn", "ffn.experts", "ffn.shared_experts")
    model = adapted(targets, quantized, **lora)
    frozen = {name: tensor.clone() for name, tensor in base_state(model).items()}
    before = {name: tensor.clone() for name, tensor in adapter_state(model).items()}
    trainer = go(tmp_path / "run", 3, model=model, loss=LOSS)
    for name, tensor in base_state(model).items():
        assert torch.equal(tensor, frozen[name]), name
    still = [name for name, tensor in adapter_state(model).items() if torch.equal(tensor, before[name])]
    # no row has a window of 128 tokens for that compressor
    assert [name for name in still if not name.startswith("layers.2.attn.compressor.")] == []
    assert len(trainer.optimizer.state) == len(before)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{"dropout": 0.2}, {"dora": True, "targets": ("attn",)}])
def test_resumed_run_equals_uninterrupted_run(tmp_path, lora):
    whole = go(tmp_path / "whole", 5, model=adapted(**lora), loss=LOSS)

    class StopError(Exception):
        pass

    def stop_after_four(trainer):
        step = trainer._step

        def counted(*arguments):
            if trainer.step == 4:
                trainer._checkpoints.settle()  # otherwise it would still be writing during the second run
                raise StopError
            step(*arguments)

        trainer._step = counted

    with pytest.raises(StopError):
        go(tmp_path / "cut", 5, stop_after_four, model=adapted(**lora), loss=LOSS)
    cut = go(tmp_path / "cut", 5, model=adapted(**lora), loss=LOSS)
    assert same_state(whole, cut)
    assert losses(tmp_path / "cut")[-1] == losses(tmp_path / "whole")[-1]


@pytest.mark.slow
def test_checkpoint_holds_only_adapters_and_their_moments(tmp_path):
    trainer = go(tmp_path / "run", 2, model=adapted(), loss=LOSS)
    names = tensor_names(complete_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    held = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    assert held == set(adapter_state(trainer.model.whole))
    moments = {name.removeprefix("optimizer.").split(":")[0] for name in names if name.startswith("optimizer.")}
    assert moments == held


@pytest.mark.slow
def test_checkpoint_of_another_base_is_rejected(tmp_path):
    go(tmp_path / "run", 2, model=adapted(), loss=LOSS)
    with pytest.raises(ValueError, match="other frozen weights"):
        go(tmp_path / "run", 4, model=adapted(seed=1), loss=LOSS)


@pytest.mark.slow
def test_checkpoint_of_a_run_that_trained_other_weights_is_rejected(tmp_path):
    go(tmp_path / "run", 2, model=adapted(), loss=LOSS)
    with pytest.raises(ValueError, match="does not hold the weights that this run trains"):
        go(tmp_path / "run", 4, loss=LOSS)


@pytest.mark.slow
def test_changed_frozen_weight_is_detected(tmp_path):
    """Balancing a gate's bias changes it."""
    with pytest.raises(RuntimeError, match="a frozen weight moved"):
        go(tmp_path / "run", 2, model=adapted(), loss=LossConfig(bias_update_speed=0.001))


def test_frozen_digest_detects_bit_flips_and_swaps():
    model = adapted(quantized=True)
    before = frozen_digest(base_state(model))
    with torch.no_grad():
        for tensor in adapter_state(model).values():
            tensor.add_(1)
    assert frozen_digest(base_state(model)) == before
    weight = model.layers[1].ffn.experts.w2.weight.data
    weight[1, 3, 5] ^= 1
    assert frozen_digest(base_state(model)) != before
    weight[1, 3, 5] ^= 1
    assert frozen_digest(base_state(model)) == before
    sink = model.layers[0].attn.attn_sink.data
    sink[:3] = torch.tensor([1.0, 2.0, 3.0])
    ordered = frozen_digest(base_state(model))
    sink[:3] = torch.tensor([2.0, 1.0, 3.0])
    assert frozen_digest(base_state(model)) != ordered


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [True, False])
def test_export_is_the_adapter(tmp_path, quantized):
    trainer = go(tmp_path / "run", 2, model=adapted(quantized=quantized), loss=LOSS)
    trainer.export(tmp_path / "adapter")
    changes, config, _ = read_adapter(tmp_path / "adapter")
    assert len(changes) * 2 == len(adapter_state(trainer.model.whole))
    assert config["peft_type"] == "LORA"
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] is None


def test_mtp_block_gets_no_adapter_without_mtp():
    assert not any(name.startswith("mtp.") for name in adapter_state(adapted(("attn",), mtp=False)))
    assert any(name.startswith("mtp.") for name in adapter_state(adapted(("attn",))))


def test_initial_values_depend_only_on_seed_and_name():
    few, many = adapter_state(adapted(("attn.wq_b",))), adapter_state(adapted(("attn",)))
    assert all(torch.equal(tensor, many[name]) for name, tensor in few.items())
    assert not torch.equal(few["layers.0.attn.wq_b.lora.trained.A"], few["layers.1.attn.wq_b.lora.trained.A"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_loss_decreases(dtype):
    model = adapted(dtype=dtype, quantized=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batches = [made_batch(0)]
    alone = ParallelModel.alone(model)
    found = [train_step(alone, optimizer, StepData.of(batches), n, 1e-2, LossConfig(), 1.0).loss for n in range(1, 13)]
    assert found[-1] < found[0] - 0.1


def test_unmatched_target_names_its_key():
    with pytest.raises(ValueError, match=r"lora\.targets: attn\.wqb matches nothing"):
        adapted(("attn.wqb",))


def test_inconsistent_lora_configs_are_rejected():
    assert LoraConfig() == LoraConfig(rank=16)
    with pytest.raises(ValueError, match=r"lora\.targets is empty"):
        LoraConfig(rank=8)
    with pytest.raises(ValueError, match="merge_into cannot be combined with"):
        LoraConfig(targets=("attn",), merge_into="released", dropout=0.1)
    for shape in ({"dora": True}, {"merge_into": "released"}):
        with pytest.raises(ValueError, match="do not support head"):
            LoraConfig(targets=("attn", "head"), **shape)


def test_scaling_survives_rounding_in_the_file(tmp_path):
    """8 / sqrt(5) is written as alpha = 8 / sqrt(5) * 5, and dividing by 5 gives another number."""
    model = ParallelModel.alone(adapted(("attn.wq_b",), rank=5, alpha=8, rslora=True))
    save_adapter(model, tmp_path / "adapter", None, None, "")
    (change, *_) = read_adapter(tmp_path / "adapter")[0].values()
    assert change.scaling != 8 / 5**0.5
    load_adapter(model, tmp_path / "adapter")


def test_dora_adapter_on_a_plain_model_is_rejected(tmp_path):
    save_adapter(ParallelModel.alone(adapted(("attn.wq_b",), dora=True)), tmp_path / "adapter", None, None, "")
    with pytest.raises(ValueError, match=r"has lengths of rows \(DoRA\) for layers\.0\.attn\.wq_b"):
        load_adapter(ParallelModel.alone(adapted(("attn.wq_b",))), tmp_path / "adapter")
