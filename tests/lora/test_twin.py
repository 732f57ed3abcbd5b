"""Two models that share weights: an adapter on one does not affect the other."""

from pathlib import Path

import pytest
import torch

from seektune.lora.build import share_weights
from seektune.lora.files import load_adapter, save_adapter
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.state import adapter_state
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM

IDS = torch.arange(40)[None]


def storages(model: DeepseekV4ForCausalLM) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}


@pytest.fixture(scope="module")
def adapter(toy_model, tmp_path_factory) -> Path:
    model = toy_model(torch.float32, hidden_size=64, moe_intermediate_size=32)
    adapt(model, matching(model, ["attn", "ffn.experts", "embed", "head"]), AdapterShape(rank=2, alpha=4.0))
    init_adapters(model, seed=0)
    with torch.no_grad():
        for name, tensor in adapter_state(model).items():
            if name.endswith(".B"):
                tensor.normal_()
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(model, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_adapter_on_one_twin_does_not_change_the_other(toy_model, tmp_path, adapter, quantized):
    toy_model(torch.float32, hidden_size=64, moe_intermediate_size=32).save_pretrained(tmp_path / "base", "released")

    def read() -> DeepseekV4ForCausalLM:
        return DeepseekV4ForCausalLM.from_pretrained(tmp_path / "base", quantized=quantized)

    base, alone = read(), read()
    load_adapter(alone, adapter)
    with torch.no_grad():
        before = base(IDS).logits
        second = share_weights(base)
        load_adapter(second, adapter)
        assert torch.equal(base(IDS).logits, before)
        assert torch.equal(second(IDS).logits, alone(IDS).logits)
        assert not torch.allclose(second(IDS).logits, before)
    # only the adapter takes memory
    assert storages(base) <= storages(second)
    added = {name for name in second.state_dict() if ".lora." in name}
    assert len(storages(second)) == len(storages(base)) + len(added)
