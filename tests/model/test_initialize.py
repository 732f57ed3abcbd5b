"""A new model is completely initialized, and its first training step is finite."""

import pytest
import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config

KEPT_FP32 = ("hc_attn", "hc_ffn", "hc_head", "attn_sink", "ape", "gate.bias")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@DTYPES
@pytest.mark.usefixtures("poisoned_memory")
def test_every_parameter_and_buffer_is_set(toy_config, dtype):
    model = DeepseekV4ForCausalLM(toy_config(), dtype=dtype)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert tensors.keys() == model.state_dict().keys()
    for name, x in tensors.items():
        if x.is_floating_point():
            assert x.isfinite().all(), name
        else:
            assert ((x >= 0) & (x < model.config.n_routed_experts)).all(), name
            assert all(len(row.unique()) == len(row) for row in x), "the experts of a row are distinct"


@DTYPES
@pytest.mark.usefixtures("poisoned_memory")
def test_model_built_on_meta_and_loaded_is_complete(parity_folder, dtype):
    model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, dtype=dtype)
    for name, x in model.state_dict().items():
        assert x.device.type == "cpu"
        if x.is_floating_point():
            assert x.isfinite().all(), name
        else:
            assert ((x >= 0) & (x < model.config.n_routed_experts)).all(), name


def test_meta_model_allocates_nothing():
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("flash"), device="meta", dtype=torch.bfloat16)
    assert {x.device.type for x in model.state_dict().values()} == {"meta"}


def test_initial_values_follow_config_and_paper():
    config = DeepseekV4Config.preset("tiny").replace(initializer_range=0.05)
    state = DeepseekV4ForCausalLM(config).state_dict()
    for name, x in state.items():
        if name.endswith("norm.weight"):
            assert (x == 1).all(), name
        elif name.endswith(("attn_sink", "ape", "gate.bias")):
            assert (x == 0).all(), name
        elif name.endswith(".scale"):
            assert ((x > 0) & (x < 0.1)).all(), "scales start small"
        elif x.is_floating_point() and x.dim() >= 2 and x.numel() > 2000:
            assert x.float().std().item() == pytest.approx(0.05, rel=0.1), name
            assert abs(x.float().mean().item()) < 0.01, name
            assert not torch.equal(x[0], x[1]), name


def test_seed_determines_the_weights(toy_config):
    def build(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return DeepseekV4ForCausalLM(toy_config()).state_dict()

    first, again, other = build(3), build(3), build(4)
    assert all(torch.equal(x, again[name]) for name, x in first.items())
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    assert not torch.equal(first["layers.0.ffn.gate.tid2eid"], other["layers.0.ffn.gate.tid2eid"])


def test_fp32_parameters_of_a_bf16_model(toy_config):
    model = DeepseekV4ForCausalLM(toy_config(), dtype=torch.bfloat16)
    found = dict.fromkeys(KEPT_FP32, 0)
    for name, x in model.state_dict().items():
        kept = [part for part in KEPT_FP32 if part in name]
        expected = torch.int64 if name.endswith("tid2eid") else torch.float32 if kept else torch.bfloat16
        assert x.dtype == expected, name
        for part in kept:
            found[part] += 1
    assert all(found.values()), found


@DTYPES
@pytest.mark.parametrize("numerics", ["plain", "released"])
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.slow
def test_one_step_from_scratch_is_finite(dtype, numerics):
    """Other implementations had NaN at step 0 from a compressor norm that was never initialized."""
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"), dtype=dtype, numerics=numerics)
    tokens = torch.randint(model.config.vocab_size, (1, 260))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for _ in range(2):
        out = model(tokens, labels=tokens, mtp=True)
        (out.loss + 0.1 * out.mtp_loss).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    assert losses[0] == pytest.approx(torch.tensor(model.config.vocab_size).log().item(), rel=0.05)
    assert losses[1] < losses[0]
    assert all(x.isfinite().all() for x in model.state_dict().values() if x.is_floating_point())
