"""Muon: which parameters it has, what a step does to them, and what a recipe can say about both."""

from collections import Counter

import pytest
import torch
from torch import nn

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.train.optim import muon as module
from seektune.train.optim.adamw import AdamW
from seektune.train.optim.build import KINDS, build_optimizer, check_groups, parameter_groups
from seektune.train.optim.config import OPTIMIZERS, AdamWConfig, MuonConfig
from seektune.train.optim.muon import GAMMA, MATRICES, Muon
from seektune.train.optim.muon_table import TABLE, muon_rule, shares, table_lines
from seektune.train.optim.newton_schulz import HYBRID, orthogonalize, orthogonalize_reference
from seektune.train.state_tensors import begin_as_saved
from tests.train.tiny_run import CONFIG, small_model

ADAMW = {"embedding", "head", "norms", "attention sinks", "position biases of compressors", "static biases of mHC",
         "gating factors of mHC"}  # fmt: skip


def trained(preset: str, drafter: bool = False) -> dict[str, nn.Parameter]:
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset(preset), "meta", drafter=drafter)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("preset", "layers", "muon"), [("flash", 44, 289_655_619_584), ("pro", 62, None)])
def test_the_table_says_for_both_models_what_each_optimizer_has(preset, layers, muon):
    parameters = trained(preset)
    by_adamw = {name for name in parameters if muon_rule(name).optimizer == "adamw"}
    assert {muon_rule(name).what for name in by_adamw} == ADAMW
    # what is left is matrices, of which none is narrower than the 24 rows of mHC's routers, but their heads' 4
    narrow = {min(p.shape[-2:]) for name, p in parameters.items() if name not in by_adamw and "hc_head" not in name}
    assert min(narrow) == 24
    assert all(p.dim() >= 2 for name, p in parameters.items() if name not in by_adamw)
    kinds = Counter(muon_rule(name).what for name in parameters)
    assert kinds["routed experts"] == kinds["shared experts"] == 3 * layers
    assert kinds["gates"] == kinds["grouped output projection"] == layers
    found = shares({name: p.shape for name, p in parameters.items()})
    assert sum(found.values()) == sum(p.numel() for p in parameters.values())
    assert muon is None or found["muon"] == muon


@pytest.mark.slow
def test_every_row_of_the_table_is_used_and_every_name_has_one():
    names = {name for preset in ("flash", "pro", "tiny") for name in trained(preset)} | trained(
        "flash-0731", True
    ).keys()
    assert {muon_rule(name) for name in names} == set(TABLE)
    with pytest.raises(ValueError, match=r"no row for layers\.0\.attn\.wq_a\.lora\.default\.A; use"):
        muon_rule("layers.0.attn.wq_a.lora.default.A")


@pytest.mark.slow
def test_the_printed_table_adds_up():
    shapes = {name: p.shape for name, p in trained("flash").items()}
    lines = table_lines(shapes)
    assert lines[0].split() == ["adamw", "embed.weight", "529,530,880", "in", "1", "tensors", "embedding"]
    assert sum(int(line.split()[2].replace(",", "")) for line in lines) == sum(s.numel() for s in shapes.values())


def test_each_name_has_a_section_and_a_builder():
    assert OPTIMIZERS.keys() == KINDS.keys()
    assert all(section(name=name).name == name for name, section in OPTIMIZERS.items())


def plain_step(weight, momentum, gradient, lr, decay):
    """The algorithm for one matrix, in fp64."""
    momentum = 0.95 * momentum + gradient
    update = orthogonalize_reference(0.95 * momentum + gradient)
    return weight * (1 - lr * decay) - lr * GAMMA * max(weight.shape) ** 0.5 * update, momentum


@pytest.mark.parametrize(("shape", "matrices"), [((12, 20), 1), ((5, 20, 12), 1), ((24, 20), 3)], ids=str)
def test_steps_are_those_of_the_algorithm(shape, matrices):
    dice = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=dice))
    count = shape[0] if len(shape) == 3 else matrices
    wanted = [x.double() for x in parameter.detach().clone().view(count, -1, shape[-1])]
    momenta = [torch.zeros_like(x) for x in wanted]
    optimizer = Muon([{"params": [parameter], MATRICES: matrices}], lr=1e-2, weight_decay=0.1)
    for _ in range(4):
        parameter.grad = torch.randn(shape, generator=dice)
        gradients = parameter.grad.double().view(count, -1, shape[-1])
        optimizer.step()
        done = [plain_step(*each, 1e-2, 0.1) for each in zip(wanted, momenta, gradients, strict=True)]
        wanted, momenta = [w for w, _ in done], [m for _, m in done]
    found = parameter.detach().double().view(count, -1, shape[-1])
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-6)
    assert set(optimizer.state[parameter]) == {"step", "momentum"}


def test_its_steps_are_torchs_where_those_coincide(monkeypatch):
    """With torch's five iterations, its momentum, and our scale as its."""
    monkeypatch.setattr(module, "orthogonalize", lambda x: orthogonalize(x.bfloat16(), HYBRID[:5]).to(x.dtype))
    monkeypatch.setattr(module, "GAMMA", 0.2)
    dice = torch.Generator().manual_seed(1)
    ours, theirs = (nn.Parameter(torch.ones(30, 20)) for _ in range(2))
    mine = Muon([{"params": [ours], MATRICES: 1}], lr=1e-2, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(30, 20, generator=dice)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    # torch's momentum is a mean, ours a sum: the same direction
    moved = (theirs - 1).detach().norm()
    assert float((ours - theirs).detach().norm() / moved) < 2e-2
    assert float(moved) > 0.1


def test_everything_else_moves_as_adamw_moves_it():
    models = [small_model() for _ in range(2)]
    muon, adamw = MuonConfig(name="muon", lr=1e-2, eps=1e-8), AdamWConfig(lr=1e-2)
    for model, config in zip(models, (muon, adamw), strict=True):
        optimizer = build_optimizer(model, config, seed=0)
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if ours.requires_grad:
            assert torch.equal(ours, theirs) == (muon_rule(name).optimizer == "adamw"), name


def test_groups_of_a_projection_are_matrices_of_their_own():
    groups = parameter_groups(small_model(), MuonConfig(name="muon"))
    model = dict(small_model().named_parameters())
    found = {group[MATRICES] for group in groups}
    assert found == {0, 1, CONFIG.o_groups}
    assert model["layers.0.attn.wo_a.weight"].shape[0] == CONFIG.o_groups * CONFIG.o_lora_rank


@pytest.mark.parametrize("master", ["fp32", "bf16_stochastic"])
def test_small_updates_of_bf16_matrices_are_kept(master):
    def moved(dtype):
        parameter = nn.Parameter(torch.ones(64, 64).to(dtype))
        optimizer = Muon([{"params": [parameter], MATRICES: 1}], lr=1e-3, weight_decay=0.0, master=master, seed=1)
        dice = torch.Generator().manual_seed(3)
        gradient = torch.randn(64, 64, generator=dice)
        for _ in range(60):
            parameter.grad = gradient.to(dtype)
            optimizer.step()
        return parameter.detach().float() - 1

    exact, kept = moved(torch.float32), moved(torch.bfloat16)
    # steps of 2e-4 at distances of 2^-8 below and 2^-7 above 1: no step alone is seen
    assert float((exact * kept).sum() / (exact * exact).sum()) == pytest.approx(1, abs=0.2 if master == "fp32" else 0.3)


def with_groups(*groups):
    return AdamWConfig.model_validate({"lr": 1e-3, "groups": list(groups)})


def test_parameters_get_the_rate_and_decay_of_the_first_group_that_matches():
    config = with_groups({"pattern": "experts", "lr": 1e-4}, {"pattern": "ffn|norm", "weight_decay": 0.5})
    model = small_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config)
    found = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found["layers.0.ffn.experts.w1"] == (pytest.approx(0.1), 0.1)
    assert found["layers.0.ffn.gate.weight"] == (1.0, 0.5)
    assert found["layers.0.attn_norm.weight"] == (1.0, 0.5)
    assert found["layers.0.attn.wq_a.weight"] == (1.0, 0.1)
    assert found["layers.0.attn.attn_sink"] == (1.0, 0.0)
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([{"pattern": "expert5"}], "optimizer.groups.0.pattern expert5 matches no trainable parameter"),
        ([{"pattern": "norm"}, {"pattern": "attn_norm"}], "optimizer.groups.1.pattern attn_norm matches no"),
        ([{"pattern": "indexer"}], "optimizer.groups.0.pattern indexer matches no trainable"),
        ([{"pattern": "a("}], "optimizer.groups: pattern a\\(: "),
    ],
)
def test_a_group_that_matches_nothing_is_refused(groups, said):
    names = [name for name, parameter in small_model().named_parameters() if parameter.requires_grad]
    with pytest.raises(ValueError, match=said):
        check_groups(names, with_groups(*groups))


def test_the_message_shows_names_as_the_model_has_them():
    names = [name for name, parameter in small_model().named_parameters() if parameter.requires_grad]
    with pytest.raises(ValueError, match=r"names are such as embed\.weight, layers\.\d\."):
        check_groups(names, with_groups({"pattern": "experts[.]0[.]w1"}))


def test_state_that_a_checkpoint_lacks_is_dropped():
    """As after going back to a checkpoint of step 0."""
    model = small_model()
    optimizer = build_optimizer(model, MuonConfig(name="muon"), seed=0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            optimizer.begin(parameter)
    begin_as_saved(model, optimizer, {"optimizer.embed.weight:step"})
    assert [*optimizer.state] == [dict(model.named_parameters())["embed.weight"]]


def test_an_unknown_kind_of_parameter_is_refused_by_name():
    class Odd(nn.Module):
        config = CONFIG

        def __init__(self):
            super().__init__()
            self.odd = nn.Parameter(torch.zeros(2, 2))

    with pytest.raises(ValueError, match="no row for odd"):
        build_optimizer(Odd(), MuonConfig(name="muon"), seed=0)
    assert isinstance(build_optimizer(Odd(), AdamWConfig(), seed=0), AdamW)
