"""A block on few tokens gives what its definition gives, and leaves alone what is not as it was built."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from seektune.kernels.cpu import ROWS
from seektune.kernels.cpu.library import library
from seektune.model import block as blocks
from seektune.model.gate import RoutingLedger
from seektune.sequence import SequenceLayout


@pytest.fixture(autouse=True, scope="module")
def compiler():
    if library() is None:
        pytest.skip("no C++ compiler here")


@pytest.fixture
def taken(monkeypatch) -> list[bool]:
    """Whether each block that ran took the short way."""
    found: list[bool] = []
    short = blocks.few

    def told(*arguments):
        result = short(*arguments)
        found.append(result is not None)
        return result

    monkeypatch.setattr(blocks, "few", told)
    return found


def decoded(model, tokens: Tensor) -> Tensor:
    cache = model.new_cache(len(tokens), tokens.shape[1])
    return torch.cat([model(token, cache=cache).logits for token in tokens.split(1, dim=1)], dim=1)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("numerics", ["plain", "released"])
def test_logits_are_those_of_the_definition(toy_model, taken, monkeypatch, dtype, bound, numerics):
    model, tokens = toy_model(dtype, numerics=numerics), torch.randint(64, (2, 24))
    found = decoded(model, tokens)
    assert taken
    assert all(taken)
    monkeypatch.setattr(blocks, "few", lambda *arguments: None)
    assert (found - decoded(model, tokens)).abs().amax(dim=-1).median() < bound


@torch.no_grad()
def test_the_short_way_is_for_few_tokens_and_nobody_who_listens(toy_model, taken):
    model = toy_model()
    streams, tokens = torch.randn(1, ROWS + 1, 4, 32).to(model.dtype), torch.randint(64, (1, ROWS + 1))
    block = model.layers[0]

    def runs(length: int, ledger: RoutingLedger | None = None) -> bool:
        taken.clear()
        block(streams[:, :length], tokens[:, :length], SequenceLayout.single(1, length), ledger)
        return any(taken)

    assert runs(ROWS)
    assert not runs(ROWS + 1)
    assert not runs(0)
    assert not runs(1, RoutingLedger())
    with torch.enable_grad():
        assert not runs(1)
    for part in (block.attn, block.attn_norm, block.ffn.experts, block.attn.wq_b):
        handle = part.register_forward_hook(lambda *arguments: None)
        assert not runs(1)
        handle.remove()
    assert runs(1)
    block.attn.wq_a = nn.Linear(32, 16, bias=False).to(model.dtype)
    assert not runs(1)


@torch.no_grad()
def test_derivatives_forwards_go_the_long_way(toy_model, taken):
    block, streams, along = toy_model().layers[0], *torch.randn(2, 1, 5, 4, 32).double()
    tokens, layout = torch.randint(64, (1, 5)), SequenceLayout.single(1, 5)

    def run(x: Tensor) -> Tensor:
        return block(x, tokens, layout, None)

    with forward_ad.dual_level():
        value, slope = forward_ad.unpack_dual(run(forward_ad.make_dual(streams, along)))
    assert not any(taken)
    near = [run(streams + sign * 1e-6 * along) for sign in (1, -1)]
    assert all(taken[1:])
    torch.testing.assert_close(value, run(streams), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope, (near[0] - near[1]) / 2e-6, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_was_cast_whole_is_read_as_it_is_now(toy_model, monkeypatch, dtype):
    """Parameters that stay wide in a model of any dtype are then of another, which addresses alone do not tell."""
    model, tokens = toy_model(torch.float32).to(dtype), torch.randint(64, (1, 6))
    found = model(tokens).logits
    monkeypatch.setattr(blocks, "few", lambda *arguments: None)
    torch.testing.assert_close(found, model(tokens).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_where_what_must_be_wide_is_not_the_definition_refuses(toy_model):
    with pytest.raises(RuntimeError, match="same dtype"):
        toy_model(torch.float32).bfloat16()(torch.randint(64, (1, 6)))


@torch.no_grad()
def test_weights_of_another_layout_are_left_alone(toy_model, taken):
    model, tokens = toy_model(torch.float32), torch.randint(64, (1, 6))
    expected = model(tokens).logits
    for block in model.layers:
        for weight in (block.hc_attn.fn, block.ffn.experts.w1):
            weight.data = weight.data.mT.contiguous().mT
    taken.clear()
    torch.testing.assert_close(model(tokens).logits, expected, rtol=0, atol=1e-4)
    assert not any(taken[: len(model.layers)])


@torch.no_grad()
def test_experts_that_do_not_exist_are_not_read(toy_model):
    model = toy_model(torch.float32)
    model.layers[0].ffn.gate.tid2eid.fill_(10**6)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.randint(64, (1, 6)))


def test_a_hash_gate_without_ids_still_refuses(toy_model):
    block = toy_model().layers[0]
    streams = torch.randn(1, 2, 4, 32).double()
    with torch.no_grad(), pytest.raises(ValueError, match="needs the token ids"):
        block(streams, None, SequenceLayout.single(1, 2), None)
