"""A quantized model has the values and gradients of the decoded model, and takes the checkpoint's bytes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seektune.checkpoint.compare import compare
from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.source import FolderSource
from seektune.kernels import fake_quantize_fp8
from seektune.lora.build import add_adapters
from seektune.lora.config import LoraConfig
from seektune.lora.dora import DoraLinear
from seektune.lora.files import unload_adapter
from seektune.lora.low_rank import LowRank
from seektune.lora.state import TRAINED
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.quantized import (
    MATRICES,
    QuantizedLinear,
    QuantizedWeight,
    as_quantized_experts,
    quantize_modules,
    quantize_weight,
)

LOW_BIT = ["released", "fp8", "base"]


@pytest.fixture(scope="module")
def folders(parity_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The parity checkpoint in every low-bit format."""
    model = DeepseekV4ForCausalLM.from_pretrained(parity_folder)
    made = {format: tmp_path_factory.mktemp("formats") / format for format in LOW_BIT[1:]}
    for format, folder in made.items():
        model.save_pretrained(folder, format=format)
    return {"released": parity_folder, **made}


def batch(config: DeepseekV4Config) -> dict[str, Tensor]:
    ids = torch.randint(config.vocab_size, (2, 150))
    documents = torch.ones_like(ids)
    documents[1, 70:] = 2
    documents[1, 140:] = 0
    return {"input_ids": ids, "labels": ids, "documents": documents}


def run(model: DeepseekV4ForCausalLM, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Logits, MTP logits, and gradients of parameters that depend on every frozen one."""
    out = model(**inputs, mtp=True)
    names = ["embed.weight", "layers.0.hc_attn.fn", "layers.1.attn.q_norm.weight"]
    parameters = [model.get_parameter(name) for name in names]
    return out.logits, out.mtp_logits, *torch.autograd.grad(out.loss + out.mtp_loss, parameters)


@pytest.mark.parametrize("format", LOW_BIT)
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_equal_the_decoded_model(folders, format, dtype):
    decoded = DeepseekV4ForCausalLM.from_pretrained(folders[format], dtype)
    quantized = DeepseekV4ForCausalLM.from_pretrained(folders[format], dtype, quantized=True)
    inputs = batch(decoded.config)
    values = run(decoded, inputs)[:2]
    # the eager backward of trained experts adds in another order
    for block in decoded.blocks():
        block.ffn.register_module("experts", as_quantized_experts(block.ffn.experts, dict.fromkeys(MATRICES, "f32")))
    found = run(quantized, inputs)
    assert all(torch.equal(x, y) for x, y in zip(found, run(decoded, inputs), strict=True))
    assert all(torch.equal(x, y) for x, y in zip(found, values, strict=False))


@pytest.mark.parametrize("format", LOW_BIT)
def test_quantized_model_takes_the_bytes_of_the_file(folders, format):
    model = DeepseekV4ForCausalLM.from_pretrained(folders[format], torch.bfloat16, quantized=True)
    files = sum(file.stat().st_size for file in folders[format].glob("*.safetensors"))
    held = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert held <= files
    assert not any(p.requires_grad for p in model.parameters() if p.dtype in (torch.int8, torch.uint8))


@pytest.mark.parametrize("format", LOW_BIT)
def test_export_in_the_same_format_copies_bytes(folders, format, tmp_path):
    model = DeepseekV4ForCausalLM.from_pretrained(folders[format], torch.bfloat16, quantized=True)
    model.save_pretrained(tmp_path / "out", format=format)
    assert {each.status for each in compare(folders[format], tmp_path / "out")} == {"same bytes"}


@pytest.mark.slow
def test_export_in_another_format_is_decoded(folders, tmp_path):
    model = DeepseekV4ForCausalLM.from_pretrained(folders["released"], torch.bfloat16, quantized=True)
    model.save_pretrained(tmp_path / "out", format="fp32")
    assert {each.status for each in compare(folders["released"], tmp_path / "out")} <= {"same bytes", "same values"}


@pytest.mark.slow
def test_random_weights_can_be_quantized(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path: Path):
    """They are quantized as by an export."""
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32}
    model, twin = toy_model(torch.float32, **sizes), toy_model(torch.float32, **sizes)
    quantize_modules(model, FORMATS["released"].kind)
    twin.save_pretrained(tmp_path / "twin", format="released")
    again = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "twin", quantized=True)
    expected = again.state_dict()
    for name, tensor in model.state_dict().items():
        if expected[name].dtype in (torch.int8, torch.uint8):
            assert torch.equal(tensor, expected[name]), name
    assert model.state_dict().keys() == expected.keys()


def test_quantized_weights_are_not_cast_with_the_model(folders):
    model = DeepseekV4ForCausalLM.from_pretrained(folders["released"], torch.float32, quantized=True)
    before = model.layers[0].attn.wq_b.weight.clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.layers[0].attn.wq_b.weight, before)


@pytest.mark.slow
def test_plain_weights_stay_plain_modules(folders, tmp_path):
    DeepseekV4ForCausalLM.from_pretrained(folders["released"]).save_pretrained(tmp_path / "plain", format="bf16")
    model = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "plain", quantized=True)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())


def test_experts_of_several_kinds_are_rejected(toy_model):
    model = toy_model(torch.float32, hidden_size=64, moe_intermediate_size=32)

    def kind(name: str) -> str:
        return "fp8" if "experts.3.w2" in name else FORMATS["released"].kind(name)

    with pytest.raises(ValueError, match=r"w2 in layers\.0\.ffn\.experts are of several kinds"):
        quantize_modules(model, kind)


@pytest.mark.parametrize("part", ["weight", "scale"])
def test_nan_in_the_file_is_reported_by_name(folders, part, tmp_path):
    from safetensors.torch import load_file, save_file

    name = f"layers.1.attn.wkv.{part}"
    for file in folders["released"].iterdir():
        target = tmp_path / file.name
        target.write_bytes(file.read_bytes())
        if file.suffix == ".safetensors" and name in (tensors := load_file(file)):
            tensors[name].view(torch.uint8).view(-1)[0] = 255
            save_file(tensors, target)
    with pytest.raises(ValueError, match=r"layers\.1\.attn\.wkv\.weight.*NaN"):
        DeepseekV4ForCausalLM.from_pretrained(tmp_path, quantized=True)


def test_loading_another_kind_is_rejected(folders):
    from seektune.checkpoint import load_weights

    model = DeepseekV4ForCausalLM(DeepseekV4Config.from_pretrained(folders["released"]), device="meta")
    quantize_modules(model, FolderSource(folders["fp8"]).kind)
    model.to_empty(device="cpu")
    with pytest.raises(ValueError, match="is stored as fp4, but the model holds it as fp8"):
        load_weights(model.state_dict(), folders["released"])


def test_serving_rounds_the_inputs_of_quantized_products(parity_folder: Path):
    """Adapters that change nothing, and their removal, leave it so; grouped products have inputs as they are."""
    load = partial(DeepseekV4ForCausalLM.from_pretrained, parity_folder, quantized=True)
    ids = torch.randint(160, (1, 40))
    serving = load(numerics="serving")
    found = serving(ids).logits
    for merge_into in (None, "released"):
        targets = ("attn", "ffn.experts", "ffn.shared_experts")
        add_adapters(serving, LoraConfig(targets=targets, rank=2, merge_into=merge_into), mtp=False, seed=0)
        assert torch.equal(serving(ids).logits, found)
        unload_adapter(serving, TRAINED)
        assert torch.equal(serving(ids).logits, found)

    released = load(numerics="released")
    assert not torch.equal(released(ids).logits, found)
    for module in released.modules():
        grouped = isinstance(module, QuantizedLinear) and (module.groups > 1 or module.wide)
        if isinstance(module, QuantizedWeight) and module.scale is not None and not grouped:
            module.register_forward_pre_hook(lambda _, args: (fake_quantize_fp8(args[0], 128), *args[1:]))
    assert torch.equal(released(ids).logits, found)


def test_serving_measures_lengths_of_dora_on_unrounded_matrices():
    base = QuantizedLinear(*quantize_weight(torch.randn(64, 160), "fp8"))
    base.fp8_inputs = True
    layer = DoraLinear(base)
    adapter = LowRank((64, 160), 2, 1.0, 0.0)
    nn.init.normal_(adapter.A)
    nn.init.normal_(adapter.B)
    layer.measure_rows()
    expected = (layer.base_values() + adapter.delta()).norm(dim=1)
    torch.testing.assert_close(layer.length(adapter), expected, rtol=1e-5, atol=0)
