"""A model that keeps its checkpoint's FP4 and FP8 computes what the decoded model does, in the checkpoint's bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seektune.checkpoint.compare import compare
from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.source import FolderSource
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.quantized import MATRICES, QuantizedLinear, as_quantized_experts, quantize_modules

FORMS = ["released", "fp8", "base"]


@pytest.fixture(scope="module")
def folders(parity_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The parity checkpoint in every low-bit format."""
    model = DeepseekV4ForCausalLM.from_pretrained(parity_folder)
    made = {form: tmp_path_factory.mktemp("formats") / form for form in FORMS[1:]}
    for form, folder in made.items():
        model.save_pretrained(folder, format=form)
    return {"released": parity_folder, **made}


def batch(config: DeepseekV4Config) -> dict[str, Tensor]:
    ids = torch.randint(config.vocab_size, (2, 150))
    documents = torch.ones_like(ids)
    documents[1, 70:] = 2
    documents[1, 140:] = 0
    return {"input_ids": ids, "labels": ids, "documents": documents}


def run(model: DeepseekV4ForCausalLM, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Logits, MTP logits, and gradients of parameters whose path leads through every frozen one."""
    out = model(**given, mtp=True)
    names = ["embed.weight", "layers.0.hc_attn.fn", "layers.1.attn.q_norm.weight"]
    parameters = [model.get_parameter(name) for name in names]
    return out.logits, out.mtp_logits, *torch.autograd.grad(out.loss + out.mtp_loss, parameters)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_decoded_model_bit_for_bit(folders, form, dtype):
    decoded = DeepseekV4ForCausalLM.from_pretrained(folders[form], dtype)
    quantized = DeepseekV4ForCausalLM.from_pretrained(folders[form], dtype, quantized=True)
    given = batch(decoded.config)
    values = run(decoded, given)[:2]
    # the fused backward of experts that train adds up in another order
    for block in decoded.blocks():
        block.ffn.register_module("experts", as_quantized_experts(block.ffn.experts, dict.fromkeys(MATRICES, "f32")))
    found = run(quantized, given)
    assert all(torch.equal(x, y) for x, y in zip(found, run(decoded, given), strict=True))
    assert all(torch.equal(x, y) for x, y in zip(found, values, strict=False))


@pytest.mark.parametrize("form", FORMS)
def test_its_weights_take_the_bytes_of_the_file(folders, form):
    model = DeepseekV4ForCausalLM.from_pretrained(folders[form], torch.bfloat16, quantized=True)
    files = sum(file.stat().st_size for file in folders[form].glob("*.safetensors"))
    held = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert held <= files
    assert not any(p.requires_grad for p in model.parameters() if p.dtype in (torch.int8, torch.uint8))


@pytest.mark.parametrize("form", FORMS)
def test_an_export_has_the_bytes_of_the_file(folders, form, tmp_path):
    model = DeepseekV4ForCausalLM.from_pretrained(folders[form], torch.bfloat16, quantized=True)
    model.save_pretrained(tmp_path / "out", format=form)
    assert {each.status for each in compare(folders[form], tmp_path / "out")} == {"same bytes"}


def test_an_export_in_another_format_is_decoded(folders, tmp_path):
    model = DeepseekV4ForCausalLM.from_pretrained(folders["released"], torch.bfloat16, quantized=True)
    model.save_pretrained(tmp_path / "out", format="fp32")
    assert {each.status for each in compare(folders["released"], tmp_path / "out")} <= {"same bytes", "same values"}


def test_random_weights_can_be_packed(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path: Path):
    """They are quantized as an export would, and read back from it."""
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


def test_bytes_are_not_cast_with_the_model(folders):
    model = DeepseekV4ForCausalLM.from_pretrained(folders["released"], torch.float32, quantized=True)
    before = model.layers[0].attn.wq_b.weight.clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.layers[0].attn.wq_b.weight, before)


def test_what_is_not_low_bit_on_disk_stays_a_plain_module(folders, tmp_path):
    DeepseekV4ForCausalLM.from_pretrained(folders["released"]).save_pretrained(tmp_path / "plain", format="bf16")
    model = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "plain", quantized=True)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())


def test_experts_of_several_kinds_are_refused(toy_model):
    model = toy_model(torch.float32, hidden_size=64, moe_intermediate_size=32)

    def kind(name: str) -> str:
        return "fp8" if "experts.3.w2" in name else FORMATS["released"].kind(name)

    with pytest.raises(ValueError, match=r"w2 in layers\.0\.ffn\.experts are of several kinds"):
        quantize_modules(model, kind)


@pytest.mark.parametrize("part", ["weight", "scale"])
def test_nan_in_the_file_is_refused_by_name(folders, part, tmp_path):
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


def test_another_kind_than_the_model_was_built_for_is_refused(folders):
    from seektune.checkpoint import load_weights

    model = DeepseekV4ForCausalLM(DeepseekV4Config.from_pretrained(folders["released"]), device="meta")
    quantize_modules(model, FolderSource(folders["fp8"]).kind)
    model.to_empty(device="cpu")
    with pytest.raises(ValueError, match="is stored as fp4, but the model holds it as fp8"):
        load_weights(model.state_dict(), folders["released"])
