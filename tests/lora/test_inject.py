"""Adapters compute `W + scaling B A` on every module, plain and quantized: values and gradients."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seektune.checkpoint.formats import FORMATS
from seektune.kernels import quantize_fp4, quantize_fp8
from seektune.lora.dora import DoraLinear
from seektune.lora.files import changes_of, load_adapter, save_adapter, unload_adapter
from seektune.lora.format import WEIGHTS
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt, rounding_of
from seektune.lora.layers import AdaptedEmbedding, AdaptedMatrix
from seektune.lora.state import TRAINED, adapted_modules, adapter_state, base_state
from seektune.lora.targets import adaptable, matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.quantized import quantize_modules
from seektune.parallel.recompute import recompute_blocks

Build = Callable[..., DeepseekV4ForCausalLM]
EVERYTHING = ("attn", "attn.compressor", "ffn.experts", "ffn.shared_experts", "embed", "head", "mtp.0")
SIZES = {"hidden_size": 64, "moe_intermediate_size": 32}


def inject_adapters(model: DeepseekV4ForCausalLM, targets: Sequence[str], filled: bool = True, **shape) -> list[str]:
    names = matching(model, targets)
    adapt(model, names, AdapterShape(**({"rank": 3, "alpha": 6.0} | shape)))
    init_adapters(model, seed=0)
    if filled:
        fill(model)
    return names


def fill(model: DeepseekV4ForCausalLM) -> None:
    """Fill B with random values, so that adapters change the outputs."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in adapter_state(model).items():
            if name.endswith(".B"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)


def merged_twin(model: DeepseekV4ForCausalLM, twin: DeepseekV4ForCausalLM) -> DeepseekV4ForCausalLM:
    """The twin with the model's changes merged into its weights."""
    state = twin.state_dict()
    with torch.no_grad():
        for name, module in adapted_modules(model):
            if isinstance(module, AdaptedMatrix):
                for expert in range(len(module.weight)):
                    state[name][expert] += module.change(expert).to(state[name].dtype)
            else:
                state[f"{name}.weight"] += module.change().to(state[f"{name}.weight"].dtype)
    return twin


def batch_of(model: DeepseekV4ForCausalLM) -> dict[str, Tensor]:
    ids = torch.randint(model.config.vocab_size, (2, 150), generator=torch.Generator().manual_seed(3))
    documents = torch.ones_like(ids)
    documents[1, 70:] = 2
    return {"input_ids": ids, "labels": ids, "documents": documents, "mtp": True}


def outputs(model: DeepseekV4ForCausalLM) -> tuple[Tensor, Tensor, Tensor]:
    out = model(**batch_of(model))
    return out.logits, out.mtp_logits, out.loss + out.mtp_loss


class TestMatching:
    def test_name_within_a_block_matches_every_layer(self, toy_model: Build):
        model = toy_model()
        found = matching(model, ["attn.wq_b"])
        assert found == [f"layers.{n}.attn.wq_b" for n in range(4)] + ["mtp.0.attn.wq_b"]
        assert any("indexer.wq_b" in name for name, _ in model.named_modules())

    def test_parent_matches_its_direct_children(self, toy_model: Build):
        model = toy_model()
        assert {name.split(".")[-1] for name in matching(model, ["attn"])} == {"wq_a", "wq_b", "wkv", "wo_a", "wo_b"}
        compressors = matching(model, ["attn.compressor"])
        assert {name.split(".", 2)[2] for name in compressors} == {"attn.compressor.wkv", "attn.compressor.wgate"}
        assert len(matching(model, ["ffn.experts"])) == 3 * 5
        assert matching(model, ["mtp.0"]) == ["mtp.0.e_proj", "mtp.0.h_proj"]

    def test_full_name_matches_one_module(self, toy_model: Build):
        assert matching(toy_model(), ["layers.2.ffn.experts.w2", "head"]) == ["layers.2.ffn.experts.w2", "head"]

    def test_matches_are_unique_and_in_model_order(self, toy_model: Build):
        model = toy_model()
        found = matching(model, ["ffn.shared_experts.w1", "ffn.shared_experts", "embed"])
        assert len(found) == len(set(found)) == 1 + 3 * 5
        assert found[0] == "embed"

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("attn.wqb", r"attn\.wqb matches nothing in this model; did you mean attn\.wq_b\?"),
            ("wq_b", r"did you mean .*wq_b\?"),
            ("layers.9.attn.wq_b", "matches nothing"),
            ("attn.indexer.wq_b", "no gradient reaches the indexer"),
            ("attn.indexer", "no gradient reaches the indexer"),
            ("ffn.gate", "the router stays as released"),
            ("ffn", "matches nothing"),
            ("layers", "matches nothing"),
        ],
    )
    def test_no_match_raises_with_the_closest_name(self, toy_model: Build, target, message):
        with pytest.raises(ValueError, match=message):
            matching(toy_model(), ["attn.wq_a", target])

    def test_indexer_and_gate_are_not_adaptable(self, toy_model: Build):
        names = adaptable(toy_model())
        assert not any("indexer" in name or "gate" in name.split(".")[-1:] for name in names)
        assert "layers.1.attn.compressor.wgate" in names

    def test_adaptable_names_of_quantized_and_adapted_models(self, toy_model: Build):
        model = toy_model(torch.float32, **SIZES)
        names = adaptable(model)
        quantize_modules(model, FORMATS["released"].kind)
        assert adaptable(model) == names
        inject_adapters(model, EVERYTHING)
        assert adaptable(model) == names


@pytest.mark.parametrize("quantized", [False, True])
def test_new_adapter_does_not_change_outputs(toy_model: Build, quantized: bool):
    model = toy_model(torch.float32, **SIZES)
    if quantized:
        quantize_modules(model, FORMATS["released"].kind)
    before = outputs(model)
    inject_adapters(model, EVERYTHING, filled=False)
    for found, expected in zip(outputs(model), before, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [{}, {"shared_a": True}, {"rslora": True, "rank": 4}])
def test_adapted_model_equals_merged_model(toy_model: Build, shape):
    model = toy_model()
    names = inject_adapters(model, EVERYTHING, **shape)
    model.double()
    twin = merged_twin(model, toy_model())
    assert len(names) == len(list(adapted_modules(model)))
    for found, expected in zip(outputs(model), outputs(twin), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_lora_gradients_follow_from_weight_gradients(toy_model: Build):
    """dA = scaling B^T dW and dB = scaling dW A^T, where dW is autograd's gradient of the merged weight."""
    model = toy_model()
    inject_adapters(model, EVERYTHING)
    model.double()
    twin = merged_twin(model, toy_model()).requires_grad_(True)
    for each in (model, twin):
        each.zero_grad()
        outputs(each)[2].backward()
    for name, module in adapted_modules(model):
        adapter, weight = (
            module.lora[TRAINED],
            twin.get_parameter(name if "experts.w" in name and "shared" not in name else f"{name}.weight"),
        )
        grad = weight.grad.mT if isinstance(module, AdaptedEmbedding) else weight.grad
        torch.testing.assert_close(adapter.A.grad, adapter.scaling * adapter.B.mT @ grad, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(adapter.B.grad, adapter.scaling * grad @ adapter.A.mT, rtol=1e-3, atol=2e-5)
        assert adapter.A.grad.abs().sum() > 0


@pytest.mark.slow
def test_shared_a_gets_the_sum_of_expert_gradients(toy_model: Build):
    model, twin = toy_model(), toy_model()
    inject_adapters(model, ["ffn.experts.w1"], shared_a=True)
    inject_adapters(twin, ["ffn.experts.w1"])
    for (_, shared), (_, single) in zip(adapted_modules(model), adapted_modules(twin), strict=True):
        with torch.no_grad():
            single.lora[TRAINED].A.copy_(shared.lora[TRAINED].A.expand_as(single.lora[TRAINED].A))
            single.lora[TRAINED].B.copy_(shared.lora[TRAINED].B)
    for each in (model.double(), twin.double()):
        outputs(each)[2].backward()
    for (_, shared), (_, single) in zip(adapted_modules(model), adapted_modules(twin), strict=True):
        expected = single.lora[TRAINED].A.grad.sum(dim=0)
        torch.testing.assert_close(shared.lora[TRAINED].A.grad, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_quantized_base_equals_decoded_base(parity_folder: Path, dtype):
    found = []
    for quantized in (False, True):
        model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, dtype, quantized=quantized)
        inject_adapters(model, EVERYTHING)
        *values, loss = outputs(model)
        loss.backward()
        found.append([*values, *(p.grad for p in model.parameters() if p.requires_grad)])
    for plain, quantized in zip(*found, strict=True):
        assert torch.equal(plain, quantized)


@pytest.mark.parametrize("mode", ["block", "selective"])
@pytest.mark.slow
def test_recomputation_gives_the_same_values_and_gradients(parity_folder: Path, mode: str):
    """With dropout, whose mask must be the same in recomputation."""
    found = []
    for chosen in ("none", mode):
        model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, quantized=True)
        inject_adapters(model, EVERYTHING, dropout=0.2)
        recompute_blocks(model, chosen, drops=True)
        torch.manual_seed(7)
        *values, loss = outputs(model)
        loss.backward()
        found.append([*values, *(p.grad for p in model.parameters() if p.requires_grad)])
    for kept, recomputed in zip(*found, strict=True):
        assert torch.equal(kept, recomputed)


def test_only_adapters_train_and_base_names_are_kept(toy_model: Build):
    model = toy_model(torch.float32, **SIZES)
    before = set(model.state_dict())
    inject_adapters(model, ["attn", "embed"])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(adapter_state(model))
    assert set(base_state(model)) == before
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert model.is_adapted()
    assert not toy_model().is_adapted()


def test_adapters_stack_under_unique_names(toy_model: Build):
    model = toy_model()
    inject_adapters(model, ["attn.wq_b"])
    adapt(model, ["layers.0.attn.wq_b"], AdapterShape(rank=2, alpha=1.0), "second")
    module = model.layers[0].attn.wq_b
    with torch.no_grad():
        module.lora["second"].A.normal_()
        module.lora["second"].B.normal_()
    x = torch.randn(3, module.weight.shape[1], dtype=torch.float64)
    expected = x @ (module.weight + module.lora[TRAINED].delta() + module.lora["second"].delta()).T
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"layers\.0\.attn\.wq_b already has an adapter named second"):
        adapt(model, ["layers.0.attn.wq_b"], AdapterShape(rank=2, alpha=1.0), "second")


@pytest.mark.parametrize("name", ["", "a.b", "keys", "training"])
def test_invalid_adapter_names_are_rejected(toy_model: Build, name: str):
    with pytest.raises(ValueError, match="an adapter cannot be named"):
        adapt(toy_model(), ["head"], AdapterShape(rank=2, alpha=1.0), name)


@pytest.mark.parametrize("shape", [{"dora": True}, {"merge_into": "released"}])
def test_dora_and_merge_aware_adapters_do_not_stack(toy_model: Build, shape):
    """They would be treated as plain adapters on a module that has one, or on a head that once had one."""
    model = toy_model()
    inject_adapters(model, ["attn.wq_b", "head"])
    single = AdapterShape(rank=2, alpha=1.0, **shape)
    with pytest.raises(ValueError, match=r"layers\.0\.attn\.wq_b already has an adapter; .* only one"):
        adapt(model, ["layers.0.attn.wq_b"], single, "second")
    unload_adapter(model, TRAINED)
    with pytest.raises(ValueError, match="do not support head"):
        adapt(model, ["head"], single, "second")
    adapt(model, ["layers.0.attn.wq_b"], single, "second")


@pytest.mark.slow
def test_dropout_only_in_training(toy_model: Build):
    model = toy_model()
    inject_adapters(model, ["attn.wq_b", "ffn.experts"], dropout=0.5)
    batch = batch_of(model)
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.eval()
    assert torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.slow
@torch.no_grad()
def test_failed_load_leaves_the_model_unchanged(toy_model: Build, tmp_path: Path):
    """The last module of the file has the wrong shape, after others have been adapted."""
    model = toy_model(torch.float32)
    inject_adapters(model, ["attn.wq_b"])
    save_adapter(model, tmp_path / "first")
    weights = load_file(tmp_path / "first" / WEIGHTS)
    last = max(name for name in weights if "lora_B" in name)
    plain = toy_model(torch.float32)
    load_adapter(plain, tmp_path / "first", adapter="first")
    before = plain(**batch_of(plain)).logits
    save_file(weights | {last: weights[last][:-1].clone()}, tmp_path / "first" / WEIGHTS)
    with pytest.raises(ValueError, match="the model needs"):
        load_adapter(plain, tmp_path / "first", adapter="second")
    assert all(list(module.lora) == ["first"] for _, module in adapted_modules(plain))
    assert torch.equal(plain(**batch_of(plain)).logits, before)
    save_file(weights, tmp_path / "first" / WEIGHTS)
    with pytest.raises(ValueError, match="already has an adapter named first"):
        load_adapter(plain, tmp_path / "first", adapter="first")
    assert torch.equal(plain(**batch_of(plain)).logits, before)
    with pytest.raises(ValueError, match="a finite number, not nan"):
        load_adapter(plain, tmp_path / "first", weight=float("nan"), adapter="second")


class TestDora:
    @torch.no_grad()
    def test_zero_row_stays_zero(self, toy_model: Build, tmp_path: Path):
        model = toy_model(torch.float32)
        model.layers[0].attn.wq_b.weight[3].zero_()
        base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        inject_adapters(model, ["attn.wq_b"], filled=False, dora=True)
        assert model(**batch_of(model)).logits.isfinite().all()
        with torch.enable_grad():
            model(**batch_of(model)).loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        change = changes_of(model)["layers.0.attn.wq_b"]
        weight = base["layers.0.attn.wq_b.weight"]
        torch.testing.assert_close(change.applied(weight, None), weight)
        assert not model.layers[0].attn.wq_b.change()[3].any()

    @pytest.mark.parametrize("quantized", [False, True])
    def test_dora_equals_its_definition(self, toy_model: Build, quantized: bool):
        model = toy_model(torch.float32, **SIZES)
        if quantized:
            quantize_modules(model, FORMATS["released"].kind)
        inject_adapters(model, ["attn", "attn.compressor"], dora=True)
        with torch.no_grad():
            for _, module in adapted_modules(model):
                module.magnitude.mul_(torch.rand(module.magnitude.shape) + 0.5)
        for name, module in adapted_modules(model):
            assert isinstance(module, DoraLinear), name
            merged = module.base_values() + module.lora[TRAINED].delta()
            weight = module.magnitude[:, None] * merged / merged.norm(dim=1, keepdim=True)
            torch.testing.assert_close(module.change(), weight - module.base_values(), rtol=1e-4, atol=1e-5)
            x = (
                torch.randn(2, 5, module.groups, module.shape[1])
                if module.groups > 1
                else torch.randn(2, 5, module.shape[1])
            )
            rows = weight.unflatten(0, (module.groups, -1))
            expected = torch.einsum("btgi,goi->btgo", x if module.groups > 1 else x.unsqueeze(2), rows)
            torch.testing.assert_close(
                module(x), expected if module.groups > 1 else expected.squeeze(2), rtol=1e-4, atol=1e-4
            )

    @pytest.mark.slow
    def test_new_dora_changes_nothing_and_trains_magnitudes(self, toy_model: Build):
        model = toy_model(torch.float32, **SIZES)
        before = outputs(model)
        inject_adapters(model, ["attn"], filled=False, dora=True)
        after = outputs(model)
        torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-4)
        after[2].backward()
        assert all(module.magnitude.grad.abs().sum() > 0 for _, module in adapted_modules(model))

    def test_dora_rejects_experts_embedding_and_stacking(self, toy_model: Build):
        for target, message in (("ffn.experts", "routed experts"), ("embed", "do not support embed")):
            with pytest.raises(ValueError, match=message):
                inject_adapters(toy_model(), [target], dora=True)
        model = toy_model()
        inject_adapters(model, ["attn.wq_b"], dora=True)
        with pytest.raises(ValueError, match="allow only one"):
            adapt(model, ["layers.0.attn.wq_b"], AdapterShape(rank=2, alpha=1.0), "second")


class TestRounded:
    """Merge-aware adapters: forward uses the weight that a merge stores; rounding has a straight-through gradient."""

    @pytest.mark.slow
    @pytest.mark.parametrize("quantized", [False, True])
    @pytest.mark.parametrize("format", ["released", "fp8", "base", "bf16"])
    def test_outputs_equal_merged_rounded_weights(self, toy_model: Build, quantized: bool, format: str):
        model, twin = toy_model(torch.float32, **SIZES), toy_model(torch.float32, **SIZES)
        for each in (model, twin):
            if quantized:
                quantize_modules(each, FORMATS["released"].kind)
        inject_adapters(model, ["attn", "ffn.experts", "ffn.shared_experts"], merge_into=format)
        inject_adapters(twin, ["attn", "ffn.experts", "ffn.shared_experts"])
        dense = DeepseekV4ForCausalLM(model.config)
        expected = {name: tensor.float() for name, tensor in decoded(model).items()}
        for name, tensor in dense.state_dict().items():
            tensor.copy_(expected[name])
        for name, module in adapted_modules(twin):
            rounding = rounding_of(
                f"{name}.weight" if not isinstance(module, AdaptedMatrix) else weight_of(name), format
            )
            with torch.no_grad():
                if isinstance(module, AdaptedMatrix):
                    for expert in range(len(module.weight)):
                        target = dense.get_parameter(name)[expert]
                        target.copy_(rounding(target + module.change(expert)))
                else:
                    target = dense.get_parameter(f"{name}.weight")
                    target.copy_(rounding(target + module.change()))
        found, wanted = outputs(model), outputs(dense)
        torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-5)
        assert not torch.allclose(found[0], outputs(twin)[0], atol=1e-3)

    @pytest.mark.parametrize("groups", [1, 4])
    @pytest.mark.parametrize("quantize", [None, quantize_fp4, quantize_fp8])
    def test_gradient_is_straight_through(self, groups, quantize):
        from seektune.kernels import dequantize, rounded_linear

        weight, scale = (torch.randn(16, 64), None) if quantize is None else quantize(torch.randn(16, 64))
        base = weight if scale is None else dequantize(weight, scale, torch.float32)
        rounding = rounding_of("layers.0.attn.wq_b.weight", "released")
        a, b = torch.randn(3, 64, requires_grad=True), torch.randn(16, 3, requires_grad=True)
        x = torch.randn(2, 5, groups, 64) if groups > 1 else torch.randn(2, 5, 64)
        x.requires_grad_()
        found = rounded_linear(x, weight, scale, a, b, 0.5, rounding, groups)
        merged = base + 0.5 * (b @ a)
        straight = merged + (rounding(merged) - merged).detach()
        x_G = x if groups > 1 else x.unsqueeze(2)
        expected = torch.einsum("btgi,goi->btgo", x_G, straight.unflatten(0, (groups, -1)))
        expected = expected if groups > 1 else expected.squeeze(2)
        upstream = torch.randn_like(found)
        torch.testing.assert_close(found, expected)
        for ours, theirs in zip(
            torch.autograd.grad(found, (x, a, b), upstream),
            torch.autograd.grad(expected, (x, a, b), upstream),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def weight_of(name: str) -> str:
    experts, _, matrix = name.rpartition(".")
    return f"{experts}.0.{matrix}.weight"


def decoded(model: DeepseekV4ForCausalLM) -> dict[str, Tensor]:
    """The base's values by the names of a plain model."""
    from seektune.checkpoint.names import slots
    from seektune.checkpoint.source import StateSource

    plain = DeepseekV4ForCausalLM(model.config, device="meta").state_dict()
    source, out = (
        StateSource(base_state(model)),
        {name: torch.empty(t.shape, dtype=t.dtype) for name, t in plain.items()},
    )
    for slot in slots({name: tuple(t.shape) for name, t in plain.items()}):
        target = out[slot.model] if slot.expert is None else out[slot.model][slot.expert]
        target.copy_(source.stored(slot.released).values())
    return out
