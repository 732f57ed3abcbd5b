import pytest
import torch
from torch import nn

from seektune.train.optim.adamw import AdamW
from seektune.train.optim.build import build_optimizer, is_decayed, parameter_groups
from seektune.train.optim.config import AdamWConfig
from seektune.train.optim.master import round_stochastically
from tests.train.tiny_run import small_model

NUMBERS = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def test_decay_is_for_matrices_only():
    decayed = {name for name, parameter in small_model().named_parameters() if is_decayed(name, parameter)}
    block = {"attn.wq_a", "attn.wq_b", "attn.wkv", "attn.wo_a", "attn.wo_b", "ffn.gate"}
    block |= {f"ffn.shared_experts.{part}" for part in ("w1", "w2", "w3")}
    expected = {"embed.weight", "head.weight", "mtp.0.e_proj.weight", "mtp.0.h_proj.weight"}
    for prefix in ("layers.0", "layers.1", "layers.2", "mtp.0"):
        expected |= {f"{prefix}.{part}.weight" for part in block}
        expected |= {f"{prefix}.ffn.experts.{part}" for part in ("w1", "w2", "w3")}
    for prefix in ("layers.1.attn.compressor", "layers.2.attn.compressor", "layers.1.attn.indexer.compressor"):
        expected |= {f"{prefix}.wkv.weight", f"{prefix}.wgate.weight"}
    expected |= {"layers.1.attn.indexer.wq_b.weight", "layers.1.attn.indexer.weights_proj.weight"}
    assert decayed == expected


def test_groups_hold_each_trainable_parameter_once():
    model = small_model()
    groups = parameter_groups(model, AdamWConfig(weight_decay=0.3))
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len(grouped) < len(list(model.parameters())), "the indexer is frozen and must not be here"


def test_a_frozen_model_has_nothing_to_optimize():
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(small_model().requires_grad_(False), AdamWConfig(), seed=0)


def test_equals_torch_on_fp32():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(3))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine, reference = AdamW(ours, **NUMBERS), torch.optim.AdamW(theirs, **NUMBERS)
    for step in range(20):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a) * 10.0 ** (step % 5 - 3)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


def trajectory(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> torch.Tensor:
    """Steps along a constant gradient with a little noise, the same for every caller."""
    dice = torch.Generator().manual_seed(5)
    for _ in range(steps):
        parameter.grad = (1 + 0.1 * torch.randn(parameter.shape, generator=dice)).to(parameter.dtype)
        optimizer.step()
    return parameter.detach().float()


def start(dtype: torch.dtype) -> nn.Parameter:
    """4,096 weights near one, where neighbouring bf16 numbers are 2^-7 apart."""
    return nn.Parameter(torch.linspace(1.0, 1.9, 4096).bfloat16().to(dtype))


def test_small_updates_are_lost_in_plain_bf16():
    numbers = {"lr": 1e-4, "weight_decay": 0.0}
    parameter = start(torch.bfloat16)
    moved = trajectory(parameter, torch.optim.AdamW([parameter], **numbers), 40) - start(torch.float32)
    assert moved.abs().max() == 0


def test_small_updates_are_kept_with_an_fp32_master():
    numbers = {"lr": 1e-4, "weight_decay": 0.0}
    exact, parameter = start(torch.float32), start(torch.bfloat16)
    wanted = trajectory(exact, AdamW([exact], **numbers), 100)
    moved = trajectory(parameter, AdamW([parameter], **numbers), 100)
    assert float((wanted - start(torch.float32).detach()).mean()) == pytest.approx(-1e-2, rel=0.05)
    # once, not a hundred times, rounded to the nearest of numbers 2^-7 apart
    assert (moved - wanted).abs().max() <= 2**-8 + 1e-6


def test_small_updates_are_kept_with_stochastic_rounding():
    numbers = {"lr": 1e-4, "weight_decay": 0.0}
    exact, parameter = start(torch.float32), start(torch.bfloat16)
    wanted = trajectory(exact, AdamW([exact], **numbers), 100)
    moved = trajectory(parameter, AdamW([parameter], **numbers, master="bf16_stochastic", seed=1), 100)
    before = start(torch.float32).detach()
    assert float((moved - before).mean()) == pytest.approx(float((wanted - before).mean()), rel=0.05)


def test_stochastic_rounding_is_unbiased_and_to_a_neighbour():
    value = torch.tensor([1.0 + 2**-9, -3.0 - 2**-10, 0.1, 1e-20]).repeat_interleave(20_000)
    rounded = round_stochastically(value, torch.Generator().manual_seed(0)).float()
    mean = rounded.view(4, -1).double().mean(dim=1)
    torch.testing.assert_close(mean, value.view(4, -1)[:, 0].double(), rtol=2e-4, atol=0)
    assert all(len(row.unique()) == 2 for row in rounded.view(4, -1))
    exact = torch.tensor([0.0, 1.0, -2.5, 0.15625])
    assert torch.equal(round_stochastically(exact, torch.Generator().manual_seed(0)).float(), exact)


def test_stochastic_rounding_repeats_by_seed():
    results = []
    for seed in (3, 3, 4):
        parameter = start(torch.bfloat16)
        optimizer = AdamW([parameter], lr=1e-4, master="bf16_stochastic", seed=seed)
        results.append(trajectory(parameter, optimizer, 3))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("master", ["fp32", "bf16_stochastic"])
def test_a_restored_state_goes_on_as_if_never_stopped(master):
    def optimizer_of(parameter):
        return AdamW([parameter], lr=1e-4, master=master, seed=2)

    through = start(torch.bfloat16)
    optimizer = optimizer_of(through)
    trajectory(through, optimizer, 5)
    saved, weights = optimizer.state_dict(), through.detach().clone()
    state = saved["state"][0]
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert ("master" in state) == (master == "fp32")
    saved = {**saved, "state": {0: {key: value.clone() for key, value in state.items()}}}
    resumed = nn.Parameter(weights)
    other = optimizer_of(resumed)
    other.load_state_dict(saved)
    assert torch.equal(trajectory(through, optimizer, 5), trajectory(resumed, other, 5))


def test_parameters_without_gradient_stay():
    parameter = start(torch.bfloat16)
    AdamW([parameter], lr=1.0, weight_decay=0.5).step()
    assert torch.equal(parameter, start(torch.bfloat16))
