"""Adapters mean `W + scaling B A`: for every module, on plain and quantized weights, in values and gradients."""

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


def put_on(model: DeepseekV4ForCausalLM, targets: Sequence[str], filled: bool = True, **shape) -> list[str]:
    names = matching(model, targets)
    adapt(model, names, AdapterShape(**({"rank": 3, "alpha": 6.0} | shape)))
    init_adapters(model, seed=0)
    if filled:
        fill(model)
    return names


def fill(model: DeepseekV4ForCausalLM) -> None:
    """Adapters that change much: B no longer zero."""
    dice = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in adapter_state(model).items():
            if name.endswith(".B"):
                tensor.copy_(torch.randn(tensor.shape, generator=dice) * 0.1)


def dense_twin(model: DeepseekV4ForCausalLM, twin: DeepseekV4ForCausalLM) -> DeepseekV4ForCausalLM:
    """A plain model whose weights hold the changes."""
    state = twin.state_dict()
    with torch.no_grad():
        for name, module in adapted_modules(model):
            if isinstance(module, AdaptedMatrix):
                for expert in range(len(module.weight)):
                    state[name][expert] += module.change(expert).to(state[name].dtype)
            else:
                state[f"{name}.weight"] += module.change().to(state[f"{name}.weight"].dtype)
    return twin


def given(model: DeepseekV4ForCausalLM) -> dict[str, Tensor]:
    ids = torch.randint(model.config.vocab_size, (2, 150), generator=torch.Generator().manual_seed(3))
    documents = torch.ones_like(ids)
    documents[1, 70:] = 2
    return {"input_ids": ids, "labels": ids, "documents": documents, "mtp": True}


def outputs(model: DeepseekV4ForCausalLM) -> tuple[Tensor, Tensor, Tensor]:
    out = model(**given(model))
    return out.logits, out.mtp_logits, out.loss + out.mtp_loss


class TestMatching:
    def test_a_name_within_the_block_means_it_in_every_layer_and_nothing_longer(self, toy_model: Build):
        model = toy_model()
        found = matching(model, ["attn.wq_b"])
        assert found == [f"layers.{n}.attn.wq_b" for n in range(4)] + ["mtp.0.attn.wq_b"]
        assert any("indexer.wq_b" in name for name, _ in model.named_modules())

    def test_a_parent_means_what_is_directly_in_it(self, toy_model: Build):
        model = toy_model()
        assert {name.split(".")[-1] for name in matching(model, ["attn"])} == {"wq_a", "wq_b", "wkv", "wo_a", "wo_b"}
        compressors = matching(model, ["attn.compressor"])
        assert {name.split(".", 2)[2] for name in compressors} == {"attn.compressor.wkv", "attn.compressor.wgate"}
        assert len(matching(model, ["ffn.experts"])) == 3 * 5
        assert matching(model, ["mtp.0"]) == ["mtp.0.e_proj", "mtp.0.h_proj"]

    def test_a_full_name_means_one(self, toy_model: Build):
        assert matching(toy_model(), ["layers.2.ffn.experts.w2", "head"]) == ["layers.2.ffn.experts.w2", "head"]

    def test_names_are_those_of_the_model_in_its_order_and_only_once(self, toy_model: Build):
        model = toy_model()
        found = matching(model, ["ffn.shared_experts.w1", "ffn.shared_experts", "embed"])
        assert len(found) == len(set(found)) == 1 + 3 * 5
        assert found[0] == "embed"

    @pytest.mark.parametrize(
        ("target", "sentence"),
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
    def test_what_means_nothing_is_an_error_with_the_nearest_name(self, toy_model: Build, target, sentence):
        with pytest.raises(ValueError, match=sentence):
            matching(toy_model(), ["attn.wq_a", target])

    def test_nothing_of_indexer_and_gate_is_adaptable(self, toy_model: Build):
        names = adaptable(toy_model())
        assert not any("indexer" in name or "gate" in name.split(".")[-1:] for name in names)
        assert "layers.1.attn.compressor.wgate" in names

    def test_names_stay_the_same_on_packed_and_adapted_models(self, toy_model: Build):
        model = toy_model(torch.float32, **SIZES)
        names = adaptable(model)
        quantize_modules(model, FORMATS["released"].kind)
        assert adaptable(model) == names
        put_on(model, EVERYTHING)
        assert adaptable(model) == names


@pytest.mark.parametrize("quantized", [False, True])
def test_a_fresh_adapter_changes_no_bit(toy_model: Build, quantized: bool):
    model = toy_model(torch.float32, **SIZES)
    if quantized:
        quantize_modules(model, FORMATS["released"].kind)
    before = outputs(model)
    put_on(model, EVERYTHING, filled=False)
    for found, expected in zip(outputs(model), before, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [{}, {"shared_a": True}, {"rslora": True, "rank": 4}])
def test_an_adapted_model_is_the_one_with_the_changes_in_its_weights(toy_model: Build, shape):
    model = toy_model()
    names = put_on(model, EVERYTHING, **shape)
    model.double()
    twin = dense_twin(model, toy_model())
    assert len(names) == len(list(adapted_modules(model)))
    for found, expected in zip(outputs(model), outputs(twin), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_gradients_of_a_and_b_are_the_weights_through_the_chain_rule(toy_model: Build):
    """dA = scaling B^T dW and dB = scaling dW A^T, where dW is what autograd finds for the changed weight."""
    model = toy_model()
    put_on(model, EVERYTHING)
    model.double()
    twin = dense_twin(model, toy_model()).requires_grad_(True)
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


def test_a_shared_a_gets_the_gradients_of_all_experts(toy_model: Build):
    model, twin = toy_model(), toy_model()
    put_on(model, ["ffn.experts.w1"], shared_a=True)
    put_on(twin, ["ffn.experts.w1"])
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
def test_on_a_packed_base_everything_is_as_on_the_decoded_one(parity_folder: Path, dtype):
    found = []
    for quantized in (False, True):
        model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, dtype, quantized=quantized)
        put_on(model, EVERYTHING)
        *values, loss = outputs(model)
        loss.backward()
        found.append([*values, *(p.grad for p in model.parameters() if p.requires_grad)])
    for plain, quantized in zip(*found, strict=True):
        assert torch.equal(plain, quantized)


@pytest.mark.parametrize("mode", ["block", "selective"])
@pytest.mark.slow
def test_recomputed_blocks_give_the_same(parity_folder: Path, mode: str):
    """Values, and gradients also with dropout, whose mask is drawn again as it was."""
    found = []
    for chosen in ("none", mode):
        model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, quantized=True)
        put_on(model, EVERYTHING, dropout=0.2)
        recompute_blocks(model, chosen, drops=True)
        torch.manual_seed(7)
        *values, loss = outputs(model)
        loss.backward()
        found.append([*values, *(p.grad for p in model.parameters() if p.requires_grad)])
    for kept, recomputed in zip(*found, strict=True):
        assert torch.equal(kept, recomputed)


def test_only_adapters_train_and_the_base_keeps_its_names(toy_model: Build):
    model = toy_model(torch.float32, **SIZES)
    before = set(model.state_dict())
    put_on(model, ["attn", "embed"])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(adapter_state(model))
    assert set(base_state(model)) == before
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert model.is_adapted()
    assert not toy_model().is_adapted()


def test_adapters_stack_and_each_name_once(toy_model: Build):
    model = toy_model()
    put_on(model, ["attn.wq_b"])
    adapt(model, ["layers.0.attn.wq_b"], AdapterShape(rank=2, alpha=1.0), "second")
    module = model.layers[0].attn.wq_b
    with torch.no_grad():
        module.lora["second"].A.normal_()
        module.lora["second"].B.normal_()
    x = torch.randn(3, module.weight.shape[1], dtype=torch.float64)
    expected = x @ (module.weight + module.lora[TRAINED].delta() + module.lora["second"].delta()).T
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"layers\.0\.attn\.wq_b already has an adapter second"):
        adapt(model, ["layers.0.attn.wq_b"], AdapterShape(rank=2, alpha=1.0), "second")


@pytest.mark.parametrize("name", ["", "a.b", "keys", "training"])
def test_a_name_that_no_adapter_can_have_is_refused(toy_model: Build, name: str):
    with pytest.raises(ValueError, match="an adapter cannot be called"):
        adapt(toy_model(), ["head"], AdapterShape(rank=2, alpha=1.0), name)


@pytest.mark.parametrize("shape", [{"dora": True}, {"merge_into": "released"}])
def test_what_must_be_alone_is_not_put_beside_another_nor_where_it_means_nothing(toy_model: Build, shape):
    """On a plain adapter's module it would count as plain; so it would on a head that carried one once."""
    model = toy_model()
    put_on(model, ["attn.wq_b", "head"])
    single = AdapterShape(rank=2, alpha=1.0, **shape)
    with pytest.raises(ValueError, match=r"layers\.0\.attn\.wq_b has an adapter: .* only one"):
        adapt(model, ["layers.0.attn.wq_b"], single, "second")
    unload_adapter(model, TRAINED)
    with pytest.raises(ValueError, match="do not cover head"):
        adapt(model, ["head"], single, "second")
    adapt(model, ["layers.0.attn.wq_b"], single, "second")


def test_dropout_acts_in_training_and_not_in_evaluation(toy_model: Build):
    model = toy_model()
    put_on(model, ["attn.wq_b", "ffn.experts"], dropout=0.5)
    batch = given(model)
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.eval()
    assert torch.equal(model(**batch).logits, model(**batch).logits)


@torch.no_grad()
def test_a_model_is_as_before_when_an_adapter_is_refused(toy_model: Build, tmp_path: Path):
    """Not half adapted: the last module of the file is the one that does not fit."""
    model = toy_model(torch.float32)
    put_on(model, ["attn.wq_b"])
    save_adapter(model, tmp_path / "first")
    weights = load_file(tmp_path / "first" / WEIGHTS)
    last = max(name for name in weights if "lora_B" in name)
    plain = toy_model(torch.float32)
    load_adapter(plain, tmp_path / "first", adapter="first")
    before = plain(**given(plain)).logits
    save_file(weights | {last: weights[last][:-1].clone()}, tmp_path / "first" / WEIGHTS)
    with pytest.raises(ValueError, match="this model needs"):
        load_adapter(plain, tmp_path / "first", adapter="second")
    assert all(list(module.lora) == ["first"] for _, module in adapted_modules(plain))
    assert torch.equal(plain(**given(plain)).logits, before)
    save_file(weights, tmp_path / "first" / WEIGHTS)
    with pytest.raises(ValueError, match="already has an adapter first"):
        load_adapter(plain, tmp_path / "first", adapter="first")
    assert torch.equal(plain(**given(plain)).logits, before)
    with pytest.raises(ValueError, match="a finite number, not nan"):
        load_adapter(plain, tmp_path / "first", weight=float("nan"), adapter="second")


class TestDora:
    @torch.no_grad()
    def test_a_row_of_zeros_stays_one(self, toy_model: Build, tmp_path: Path):
        model = toy_model(torch.float32)
        model.layers[0].attn.wq_b.weight[3].zero_()
        base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        put_on(model, ["attn.wq_b"], filled=False, dora=True)
        assert model(**given(model)).logits.isfinite().all()
        with torch.enable_grad():
            model(**given(model)).loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        change = changes_of(model)["layers.0.attn.wq_b"]
        weight = base["layers.0.attn.wq_b.weight"]
        torch.testing.assert_close(change.applied(weight, None), weight)
        assert not model.layers[0].attn.wq_b.change()[3].any()

    @pytest.mark.parametrize("quantized", [False, True])
    def test_it_is_its_definition(self, toy_model: Build, quantized: bool):
        model = toy_model(torch.float32, **SIZES)
        if quantized:
            quantize_modules(model, FORMATS["released"].kind)
        put_on(model, ["attn", "attn.compressor"], dora=True)
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

    def test_a_fresh_one_changes_nothing_and_trains_the_lengths(self, toy_model: Build):
        model = toy_model(torch.float32, **SIZES)
        before = outputs(model)
        put_on(model, ["attn"], filled=False, dora=True)
        after = outputs(model)
        torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-4)
        after[2].backward()
        assert all(module.magnitude.grad.abs().sum() > 0 for _, module in adapted_modules(model))

    def test_routed_experts_embedding_and_stacking_are_refused(self, toy_model: Build):
        for target, sentence in (("ffn.experts", "routed experts"), ("embed", "do not cover embed")):
            with pytest.raises(ValueError, match=sentence):
                put_on(toy_model(), [target], dora=True)
        model = toy_model()
        put_on(model, ["attn.wq_b"], dora=True)
        with pytest.raises(ValueError, match="there can be only one"):
            adapt(model, ["layers.0.attn.wq_b"], AdapterShape(rank=2, alpha=1.0), "second")


class TestRounded:
    """Merge-aware adapters: forward sees the weight that a merge would store, backward sees through the rounding."""

    @pytest.mark.parametrize("quantized", [False, True])
    @pytest.mark.parametrize("format", ["released", "fp8", "base", "bf16"])
    def test_the_model_computes_what_the_merged_weights_give(self, toy_model: Build, quantized: bool, format: str):
        model, twin = toy_model(torch.float32, **SIZES), toy_model(torch.float32, **SIZES)
        for each in (model, twin):
            if quantized:
                quantize_modules(each, FORMATS["released"].kind)
        put_on(model, ["attn", "ffn.experts", "ffn.shared_experts"], merge_into=format)
        put_on(twin, ["attn", "ffn.experts", "ffn.shared_experts"])
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
    def test_the_gradient_is_that_of_the_sum_with_the_rounded_weight_for_x(self, groups, quantize):
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
    """The base's values under the names of a plain model."""
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
