"""Tokens travel to the experts of other processes while the shared expert computes, in forward and in backward."""

import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seektune.kernels import batch_invariant_kernels, fake_quantize_fp8
from seektune.model.initialize import initialize
from seektune.model.moe import MoE
from seektune.parallel.config import ParallelConfig
from seektune.parallel.deep_ep import DeepEpDispatch, check_deep_ep
from seektune.parallel.dims import make_dims
from seektune.parallel.expert_dispatch import ExpertDispatch
from seektune.parallel.mesh import Mesh
from seektune.parallel.messages import ENCODINGS, GROUP, functional
from seektune.parallel.parallelize import parallelize, sharing_weights
from seektune.sequence import Batch

from ..conftest import randomize
from . import fake_deep_ep
from .mesh_law import SHALLOW
from .workers import run_workers

LAYER = 2
"""With a gate that learns."""
TOKENS = 14
SPREAD: dict[str, Any] = {"ep_size": 2, "dp_replicate": 2, "dp_shard": 1}
FORWARD = ["send tokens", "send weights", "shared", "wait", "wait", "experts", "send outputs", "wait"]
BACKWARD = ["send", "wait", "experts", "send", "send", "shared", "wait", "wait"]
"""What was sent last in forward is sent first in backward."""


class Messages(TorchDispatchMode):
    """Records when messages are sent and waited for."""

    def __init__(self, events: list[str]):
        super().__init__()
        self._events = events

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is functional.all_to_all_single.default:
            self._events.append("send")
        if func is functional.wait_tensor.default:
            self._events.append("wait")
        return func(*args, **(kwargs or {}))


def spread_moe(moe: MoE, dispatch: ExpertDispatch) -> MoE:
    """The same layer with the experts of this process."""
    own = moe.__class__(SHALLOW, LAYER, None, torch.float32)
    own.load_state_dict(moe.state_dict())
    for name, whole in own.experts.named_parameters():
        own.experts.register_parameter(
            name, torch.nn.Parameter(whole.detach().chunk(dist.get_world_size())[dist.get_rank()])
        )
    own.dispatch = dispatch
    return own


def watch(moe: MoE, events: list[str]) -> None:
    """Record the passes of both kinds of experts."""
    for name, module in (("experts", moe.experts), ("shared", moe.shared_experts)):
        module.register_forward_hook(lambda *_, name=name: events.append(name))
        module.register_full_backward_hook(lambda *_, name=name: events.append(name))


def outcome(moe: MoE, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of tokens, gate and experts."""
    x = x.clone().requires_grad_()
    out = moe(x, None, None, None)
    leaves = x, moe.gate.weight, moe.experts.w1, moe.shared_experts.w2.weight
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def run() -> dict[str, Any]:
    """On each process: what messages of every kind compute beside the layer on one device, and the order of events."""
    torch.manual_seed(0)
    moe = MoE(SHALLOW, LAYER, None, torch.float32)
    moe.config = SHALLOW
    randomize(moe)
    rank = dist.get_rank()
    tokens = torch.randn(dist.get_world_size(), 1, TOKENS, SHALLOW.hidden_size)[rank]
    group = dist.group.WORLD
    assert group is not None
    found: dict[str, Any] = {}
    expected = outcome(moe, tokens)
    # each process has the gradients of its experts for the tokens of all
    dist.all_reduce(expected[3])
    expected[3] = expected[3].chunk(dist.get_world_size())[rank]
    for name, dispatch in {
        "exact": ExpertDispatch(group),
        "two parts": ExpertDispatch(group, parts=2),
        "more parts than tokens": ExpertDispatch(group, parts=TOKENS + 3),
    }.items():
        found[name] = max(
            float((x - y).abs().max())
            for x, y in zip(outcome(spread_moe(moe, dispatch), tokens), expected, strict=True)
        )
    found["events"] = observed(spread_moe(moe, ExpertDispatch(group)), tokens)
    found["events of two parts"] = observed(spread_moe(moe, ExpertDispatch(group, parts=2)), tokens)
    found["fp8"] = rounded(moe, spread_moe(moe, ExpertDispatch(group, ENCODINGS["fp8"])), tokens)
    for kind in ENCODINGS:
        found[f"passes with {kind}"] = passes(ParallelConfig(ep_message_dtype=kind, **SPREAD))  # type: ignore[arg-type]
    found["deep_ep"] = through_deep_ep(moe, tokens)
    return found


def passes(layout: ParallelConfig) -> dict[str, Tensor]:
    """Log-probabilities by the training forward, by the model that decodes, and by one on the same weights."""
    mesh = Mesh.of(make_dims(layout, dist.get_world_size()), torch.device("cpu"))
    model = parallelize(SHALLOW, mesh, layout, torch.float32)
    initialize(model.shards(), SHALLOW)
    torch.manual_seed(0)
    for name, shard in model.shards().items():
        if "experts.w" in name or name == "head.weight":
            shard.tensor.normal_(std=0.3)
    tokens = torch.randint(SHALLOW.vocab_size, (2, TOKENS), generator=torch.Generator().manual_seed(mesh.rank))
    batch = Batch(tokens, tokens, torch.ones_like(tokens))
    with torch.no_grad(), batch_invariant_kernels():
        logits = model.decodable()(tokens).logits
        return {
            "training": model.own_logprobs(batch)[:, :-1],
            "decoding": logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0],
            "another adapter": sharing_weights(model).own_logprobs(batch)[:, :-1],
        }


def through_deep_ep(moe: MoE, tokens: Tensor) -> float:
    """The largest error of the layer in bf16 behind DeepEP, as a share of the largest value of each result."""
    sys.modules["deep_ep"] = fake_deep_ep.module()
    group = dist.group.WORLD
    assert group is not None
    low = moe.bfloat16()
    expected = outcome(low, tokens.bfloat16())
    dist.all_reduce(expected[3])
    expected[3] = expected[3].chunk(dist.get_world_size())[dist.get_rank()]
    found = outcome(spread_moe(low, DeepEpDispatch(group)).bfloat16(), tokens.bfloat16())
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, expected, strict=True))


def observed(moe: MoE, tokens: Tensor) -> tuple[list[str], list[str]]:
    """The events of forward and of backward."""
    events: list[str] = []
    watch(moe, events)
    with Messages(events):
        out = moe(tokens.clone().requires_grad_(), None, None, None)
        forward = events.copy()
        events.clear()
        out.sum().backward()
    return forward, events


def rounded(moe: MoE, spread: MoE, tokens: Tensor) -> dict[str, float]:
    """FP8 messages beside experts that get rounded tokens on one device, and beside exact ones."""
    x = tokens[0]
    with torch.no_grad():
        routing = moe.gate(x, None)
        found = spread.dispatch.start(x, routing, spread.experts)()
        twin = moe.dispatch.start(fake_quantize_fp8(x, GROUP), routing, moe.experts)()
        exact = moe.dispatch.start(x, routing, moe.experts)()
    gradient = token_gradient(spread, x, routing)
    straight = token_gradient(moe, fake_quantize_fp8(x, GROUP), routing)
    return {
        "twin": float((found - twin).abs().max()),
        "lost": float((found - exact).norm() / exact.norm()),
        "gradient": float((gradient - straight).abs().max() / straight.abs().max()),
    }


def token_gradient(moe: MoE, x: Tensor, routing: Any) -> Tensor:
    """Of the routed experts' outputs alone."""
    x = x.detach().requires_grad_()
    out = moe.dispatch.start(x, routing, moe.experts)()
    return torch.autograd.grad(out.square().sum(), x)[0]


@pytest.fixture(scope="module")
def processes() -> list[dict[str, Any]]:
    return run_workers(2, run)


@pytest.mark.parametrize("kind", ["exact", "two parts", "more parts than tokens"])
def test_messages_compute_what_one_device_does(processes: list[dict[str, Any]], kind: str):
    assert max(found[kind] for found in processes) < 1e-4


def test_the_shared_expert_computes_while_tokens_and_their_gradients_travel(processes: list[dict[str, Any]]):
    for found in processes:
        forward, backward = found["events"]
        assert forward == [event.split()[0] for event in FORWARD]
        assert backward == BACKWARD


def test_experts_compute_while_the_messages_of_another_part_travel(processes: list[dict[str, Any]]):
    forward, backward = processes[0]["events of two parts"]
    sent = ["send"] * 4 + ["shared"]
    each = ["wait", "wait", "experts", "send"]
    assert forward == [*sent, *each, *each, "wait", "wait"]
    assert sorted(backward) == sorted(forward)
    first, second = (number for number, event in enumerate(backward) if event == "experts")
    # the second part's gradients are sent back before the first part's experts compute, and waited for at the end
    assert "send" in backward[first:second]
    assert backward[-4:] == ["wait"] * 4


def test_fp8_messages_are_rounded_tokens(processes: list[dict[str, Any]]):
    for found in processes:
        assert found["fp8"]["twin"] < 1e-5
        # E4M3 has three bits behind the point: each value is off by up to 6 %, by 2.6 % on average
        assert 0.01 < found["fp8"]["lost"] < 0.05


def test_decoding_and_teachers_send_the_messages_of_training(processes: list[dict[str, Any]]):
    for found in processes:
        exact = found["passes with model"]["training"]
        for each in (found["passes with model"], found["passes with fp8"]):
            torch.testing.assert_close(each["decoding"], each["training"], rtol=0, atol=1e-5)
            torch.testing.assert_close(each["another adapter"], each["training"], rtol=0, atol=0)
        assert (found["passes with fp8"]["training"] - exact).abs().max() > 1e-3


def test_the_gradient_of_fp8_messages_is_that_of_the_rounded_tokens(processes: list[dict[str, Any]]):
    """It passes straight through, and is not rounded itself."""
    for found in processes:
        assert found["fp8"]["gradient"] < 1e-5


def test_deep_ep_computes_what_one_device_does(processes: list[dict[str, Any]]):
    """With a stand-in for its buffer; outputs are summed in bf16 on the way."""
    assert max(found["deep_ep"] for found in processes) < 3e-2


def test_deep_ep_is_refused_where_it_cannot_run():
    with pytest.raises(ValueError, match="the package deep_ep is not installed; use torch"):
        check_deep_ep(torch.bfloat16)
    with pytest.raises(ValidationError, match="cannot be combined with ep_message_dtype or ep_parts"):
        ParallelConfig(ep_backend="deep_ep", ep_parts=2)


@pytest.mark.parametrize("width", [128, 200, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_fp8_message_holds_what_rounding_gives(width: int, dtype: torch.dtype):
    x = (torch.randn(5, width) * torch.tensor([[1e-6], [1], [1e4], [0], [448]])).to(dtype)
    sent = ENCODINGS["fp8"].encode(x)
    groups = -(-width // GROUP)
    assert sent.dtype == torch.uint8
    assert sent.shape == (5, groups * GROUP + groups)
    torch.testing.assert_close(ENCODINGS["fp8"].decode(sent, x), fake_quantize_fp8(x, GROUP), rtol=0, atol=0)
