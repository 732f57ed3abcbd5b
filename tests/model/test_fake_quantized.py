"""Quantization-aware training computes what the checkpoint that it is exported to will compute."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.checkpoint.compare import compare
from seektune.checkpoint.convert import convert
from seektune.checkpoint.formats import FORMATS, PLAIN
from seektune.checkpoint.stored import Stored, encode
from seektune.kernels import fake_quantize_fp8, fake_quantize_weight
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.fake_quantized import ROUNDED_AS, FakeQuantizedExperts, FakeQuantizedLinear, fake_quantize_modules
from seektune.model.moe import Experts

FORMS = ("released", "fp8")
WIDE = {"hidden_size": 64, "moe_intermediate_size": 32}
"""Sizes whose rows are whole groups of FP4."""


def exported(weight: Tensor, kind: str) -> Tensor:
    """The values that an export of these holds."""
    return encode(Stored("f32", weight), weight, kind).values()


@pytest.mark.parametrize("kind", ROUNDED_AS)
@pytest.mark.parametrize("size", [1e-6, 0.02, 30.0])
def test_training_rounds_as_an_export_encodes(kind: str, size: float):
    weight = torch.randn(130, 160) * size * torch.logspace(-2, 0, 160)
    assert torch.equal(fake_quantize_weight(weight, ROUNDED_AS[kind]), exported(weight, kind))


def test_every_format_that_can_be_trained_for_has_known_kinds():
    names = ["layers.1.attn.wq_a.weight", "layers.1.ffn.experts.3.w2.weight", "mtp.0.e_proj.weight"]
    assert {FORMATS[form].kind(name) for form in FORMS for name in names} <= ROUNDED_AS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_an_export_computes_what_training_computed(
    toy_model: Callable[..., DeepseekV4ForCausalLM], form, dtype, tmp_path
):
    """To the last bit: other weights, which are stored in bf16, have values that bf16 holds."""
    model = toy_model(dtype, "released", **WIDE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    fake_quantize_modules(model, form)
    ids = torch.randint(model.config.vocab_size, (2, 60))
    with torch.no_grad():
        expected = model(ids, mtp=True)
        model.save_pretrained(tmp_path / form, format=form)
        again = DeepseekV4ForCausalLM.from_pretrained(tmp_path / form, dtype, "released")
        weights_only = again(ids).logits
        fake_quantize_modules(again, form)
        found = again(ids, mtp=True)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.mtp_logits, expected.mtp_logits)
    assert not torch.equal(weights_only, expected.logits), "activations are rounded too"


@pytest.mark.slow
@pytest.mark.parametrize("plain", ["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_plain_export_that_is_converted_is_the_export_of_training(
    toy_model: Callable[..., DeepseekV4ForCausalLM], form, plain, tmp_path
):
    model = toy_model(PLAIN[FORMATS[plain].rest], "released", **WIDE)
    fake_quantize_modules(model, form)
    model.save_pretrained(tmp_path / "trained", form)
    model.save_pretrained(tmp_path / "plain", plain)
    convert(tmp_path / "plain", tmp_path / "converted", form)
    assert {each.status for each in compare(tmp_path / "trained", tmp_path / "converted")} == {"same bytes"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_untouched_tensors_keep_their_bytes_and_values(parity_folder: Path, dtype, tmp_path):
    model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, dtype, "released")
    fake_quantize_modules(model, "released")
    for module in model.modules():
        if isinstance(module, FakeQuantizedLinear):
            assert torch.equal(fake_quantize_weight(module.weight, module.kind), module.weight)
        if isinstance(module, FakeQuantizedExperts):
            assert torch.equal(fake_quantize_weight(module.w2, "fp4"), module.w2)
    with torch.no_grad():
        changed = model.get_parameter("layers.1.ffn.experts.w1")[3]
        changed.mul_(1.3)
        expected = fake_quantize_weight(changed.float(), "fp4")
    model.save_pretrained(tmp_path / "out", "released", original=parity_folder)
    others = [each for each in compare(parity_folder, tmp_path / "out") if each.status != "same bytes"]
    assert [each.name for each in others] == ["layers.1.ffn.experts.3.w1.weight"]
    again = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.get_parameter("layers.1.ffn.experts.w1")[3], expected)
    model.save_pretrained(tmp_path / "plain", "fp32" if dtype == torch.float32 else "bf16")
    convert(tmp_path / "plain", tmp_path / "converted", "released", original=parity_folder)
    assert {each.status for each in compare(tmp_path / "out", tmp_path / "converted")} == {"same bytes"}


def test_scales_follow_the_rule_of_the_release():
    """The smallest power of two whose largest value holds the peak: a group whose 6 grows gets twice the scale."""
    grid = torch.tensor([[6.0, 0.5, 1.5, 3.0] + [0.5] * 28]) * 2**-7
    coarser = torch.tensor([[6.0, 1.0, 2.0, 3.0] + [1.0] * 28]) * 2**-7
    assert torch.equal(fake_quantize_weight(grid, "fp4"), grid)
    assert torch.equal(fake_quantize_weight(grid * 1.001, "fp4"), coarser)


def straight(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()


def plainly(experts: Experts, x_ND: Tensor, weights_P: Tensor, counts: list[int], tokens_P: Tensor) -> Tensor:
    """One pair after the other."""
    w1, w2, w3 = (straight(w, torch.stack([exported(e.float(), "fp4").double() for e in w]))
                  for w in (experts.w1, experts.w2, experts.w3))  # fmt: skip
    out = torch.zeros_like(x_ND)
    owners = [expert for expert, count in enumerate(counts) for _ in range(count)]
    for pair, (token, expert) in enumerate(zip(tokens_P.tolist(), owners, strict=True)):
        x = straight(x_ND[token], fake_quantize_fp8(x_ND[token], 128))
        gate = (w1[expert] @ x).clamp(max=experts.limit)
        up = (w3[expert] @ x).clamp(-experts.limit, experts.limit)
        inner = weights_P[pair] * F.silu(gate) * up
        inner = straight(inner, fake_quantize_fp8(inner, 128))
        out = out.index_add(0, tokens_P[pair : pair + 1], (w2[expert] @ inner)[None])
    return out


def test_experts_have_the_values_and_straight_through_gradients_of_the_definition(toy_model):
    experts = toy_model(**WIDE).layers[2].ffn.experts
    x = torch.randn(5, 64, dtype=torch.float64, requires_grad=True)
    counts = [2, 0, 3, 1, 2, 1, 0, 1]
    tokens = torch.tensor([0, 1, 1, 2, 4, 3, 0, 2, 4, 3])
    weights = torch.rand(10, dtype=torch.float64, requires_grad=True)
    inputs = [x, weights, experts.w1, experts.w2, experts.w3]
    upstream = torch.randn(5, 64, dtype=torch.float64)
    expected = plainly(experts, x, weights, counts, tokens)
    found = FakeQuantizedExperts(experts, "fp4")(x, weights, counts, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_grouped_layers_round_their_weight_and_others_their_input_too(toy_model):
    attn = toy_model(**WIDE).layers[1].attn
    x = torch.randn(3, 64, dtype=torch.float64)
    weight = exported(attn.wq_a.weight.float(), "fp8").double()
    assert torch.equal(FakeQuantizedLinear(attn.wq_a, "fp8")(x), F.linear(fake_quantize_fp8(x, 128), weight))
    groups = torch.randn(3, 2, 32, dtype=torch.float64)
    weight = exported(attn.wo_a.weight.float(), "fp8").double()
    expected = torch.einsum("ngi,goi->ngo", groups, weight.unflatten(0, (2, -1)))
    torch.testing.assert_close(FakeQuantizedLinear(attn.wo_a, "fp8")(groups), expected)


def test_a_shape_that_has_no_fp4_is_refused(toy_model):
    with pytest.raises(ValueError, match=r"train\.qat cannot round layers\.0\.ffn\.experts\.w2 .* use fp8"):
        fake_quantize_modules(toy_model(), "released")
