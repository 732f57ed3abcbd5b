"""Decode steps of static shapes: the tokens of the other steps, without a wait for the device or a new shape."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from seektune.generate import worker
from seektune.generate.cache_limit import CacheLimit
from seektune.generate.capacity import BatchRows, CacheRoom, padded_rows
from seektune.generate.engine import DecodeEngine
from seektune.generate.plan import Admission, EngineOptions, StepPlan
from seektune.generate.request import Request
from seektune.generate.sampling_params import Sampling
from seektune.generate.static_steps import StaticSteps, static_obstacle
from seektune.generate.worker import DecodeWorker
from seektune.lora.inject import AdapterShape, adapt
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.kv_cache.cache import KVCache
from seektune.model.kv_cache.static import StaticCache
from seektune.model.quantized import QuantizedLinear
from seektune.model.streamed_parts import StreamedParts

from .static_models import MODELS, WIDE, made

WAITS = ("item", "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "tolist")
"""Operations that read a value on the host, or whose result's shape depends on values."""
COPIES = ("lift_fresh", "lift", "tensor")
"""Operations that bring a value of the host to the device."""


class Recorded(TorchDispatchMode):
    """What the operations of a step are given: shapes of tensors, and every number of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in (*WAITS, *COPIES), name
        if name.startswith("index"):
            indices = tree_flatten(args[1])[0]
            assert not any(isinstance(x, Tensor) and x.dtype == torch.bool for x in indices), "a mask as an index"
        out = func(*args, **(kwargs or {}))
        self.calls.append((name, *_plain((args, kwargs)), "gives", *_plain(out)))
        return out


def _plain(x: Any) -> Iterator[Any]:
    for each in tree_flatten(x)[0]:
        yield (tuple(each.shape), each.dtype) if isinstance(each, Tensor) else each


def filled(model: DeepseekV4ForCausalLM, lengths: list[int], grows: bool = True) -> KVCache:
    cache = model.new_cache(len(lengths), 400, grows=grows)
    ids = torch.randint(64, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    model.advance(ids, cache, lengths)
    return cache


def next_tokens(rows: int, count: int) -> list[Tensor]:
    return list(torch.randint(64, (count, rows, 1), generator=torch.Generator().manual_seed(2)).unbind())


@pytest.fixture(scope="module", params=["plain", *(pytest.param(k, marks=pytest.mark.slow) for k in [*MODELS][1:])])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def model(kind: str, toy_model: Any) -> DeepseekV4ForCausalLM:
    """In fp64, so that sums in another order agree."""
    return made(toy_model, kind, torch.float64)


@torch.inference_mode()
def test_static_steps_have_the_streams_of_the_others(model: DeepseekV4ForCausalLM) -> None:
    """Rows of three lengths, in a cache that grows at 256 tokens, and is read and decoded again."""
    lengths = [3, 126, 253]
    expected = filled(model, lengths)
    cache = filled(model, lengths)
    steps = StaticSteps(model)
    for number, tokens_B1 in enumerate(next_tokens(3, 7)):
        if number == 2:
            steps.write_back()
            for cache_of in (cache, expected):
                cache_of.rollback([1, 0, 2])
        found = steps.advance(tokens_B1, cache)
        wanted = model.advance(tokens_B1, expected)
        assert float((found - wanted).abs().max()) < 1e-10 * float(wanted.abs().max())
        assert (cache.lengths, cache.rollbacks) == (expected.lengths, expected.rollbacks)
    assert cache.room == 400


@torch.inference_mode()
def test_fewer_rows_run_on_the_same_buffers_in_a_step_that_is_kept(toy_model: Any) -> None:
    """Rows leave and come back: the two steps are made once, as a GPU would capture them."""
    model = toy_model()
    steps = StaticSteps(model)
    many = filled(model, [3, 9, 5, 130, 7])
    few = many.select([3, 1])
    expected = [many.select(range(5)), few.select([0, 1])]
    places = []
    for number in (0, 1, 0, 1):
        rows = [5, 2][number]
        tokens_B1 = next_tokens(rows, 1)[0]
        found = steps.advance(tokens_B1, [many, few][number])
        wanted = model.advance(tokens_B1, expected[number])
        assert float((found - wanted).abs().max()) < 1e-10 * float(wanted.abs().max())
        places.append((steps.addresses(), steps.nbytes))
    assert steps.captured == [8, 2]
    assert all(each == places[0] for each in places)


@torch.inference_mode()
def test_a_cache_that_grew_between_steps_is_loaded_again(toy_model: Any) -> None:
    model = toy_model()
    steps = StaticSteps(model)
    cache = filled(model, [254, 6])
    expected = filled(model, [254, 6])
    for number, tokens_B1 in enumerate(next_tokens(2, 5)):
        if number == 1:
            cache.reserve(257)
        found = steps.advance(tokens_B1, cache)
        wanted = model.advance(tokens_B1, expected)
        assert float((found - wanted).abs().max()) < 1e-10 * float(wanted.abs().max())


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("room", [256, 301])
def test_buffers_take_no_more_than_is_planned(toy_model: Any, rows: int, room: int) -> None:
    model = toy_model()
    buffers = StaticCache.like(model.new_cache(rows, room), padded_rows(rows))
    planned = CacheRoom(model.cache_size(room), 0, room - 1, 0, grows=False, static_steps=True)
    assert 0.5 < buffers.nbytes / planned.static_bytes(BatchRows(rows, room - 1)) <= 1


@pytest.mark.slow
def test_caches_and_buffers_stay_within_the_memory(monkeypatch: pytest.MonkeyPatch, toy_model: Any) -> None:
    """Five short sequences, which leave buffers of eight rows, then two long ones, in the memory of the five."""
    model = toy_model()
    plan = CacheRoom(model.cache_size(690), 0, 690, 0, grows=True, static_steps=True)
    free = -plan.left([BatchRows(5, 5)])
    short = [Request([1 + i, 2], 3, Sampling(0)) for i in range(5)]
    long = [Request([5 + i] * 250, 440, Sampling(0), stop_ids=frozenset(range(16))) for i in range(2)]

    def decoded(static: bool, room: int) -> tuple[dict[int, list[int]], int]:
        monkeypatch.setattr(worker, "free_bytes", lambda *_: room)
        engine = DecodeEngine(model, longest=690, memory=CacheLimit(), static_steps=static)
        found: dict[int, list[int]] = {}
        most = 0
        for requests in (short, long):
            engine.add(requests)
            while not engine.done:
                for token in engine.step():
                    found.setdefault(token.request, []).append(token.id)
                most = max(most, engine.cache_bytes)
        return found, most

    texts, most = decoded(True, free)
    assert texts == decoded(False, 10**12)[0]
    assert len(texts) == 7
    assert most <= free
    with pytest.raises(ValueError, match="for its KV cache and its copies, but"):
        decoded(True, -plan.left([BatchRows(1, 690)]) - 1)


@pytest.mark.parametrize("free", [0, 10**9])
def test_buffers_without_room_beside_new_sequences_are_freed(toy_model: Any, free: int) -> None:
    """One of five sequences is left in buffers of eight rows when another one begins."""
    model = toy_model()
    room = CacheRoom(model.cache_size(300), 10**9, 300, 0, grows=True, static_steps=True)
    decoder = DecodeWorker(model, EngineOptions(300, grows=True, static_steps=True), measured=room)

    def step(*new: int, ended: tuple[int, ...] = ()) -> int:
        admitted = [Admission(0, number, Request([1, number], 9, Sampling(0))) for number in new]
        return decoder.step(StepPlan(admitted, ended, decode=0 not in new, prefill=bool(new))).cache_bytes

    step(*range(5))
    step()
    decoder.room = replace(room, free=free)
    held = step(5, ended=(1, 2, 3, 4))
    row = model.cache_size(300).bytes(256)
    buffers = StaticCache.like(model.new_cache(1, 300, grows=True), 8).nbytes
    assert held - 2 * row == (buffers if free else buffers // 8)


@pytest.mark.slow
@torch.inference_mode()
def test_steps_wait_for_nothing_and_allocate_the_same(kind: str, toy_model: Any) -> None:
    """Four steps, in which windows of four tokens and of 128 end, are the same operations on the same shapes."""
    model = made(toy_model, kind, torch.float32)
    cache = filled(model, [124, 5])
    steps = StaticSteps(model)
    tokens = next_tokens(2, 5)
    steps.advance(tokens[0], cache)
    buffers = steps.addresses()
    assert len(buffers) > 10
    recorded = []
    for tokens_B1 in tokens[1:]:
        with Recorded() as each:
            steps.forward(tokens_B1)
        cache.count([1, 1])
        recorded.append(each.calls)
        assert steps.addresses() == buffers
    assert len(recorded[0]) > 100
    assert all(calls == recorded[0] for calls in recorded)


@torch.inference_mode()
def test_the_other_steps_do_wait(kind: str, toy_model: Any) -> None:
    model = made(toy_model, kind, torch.float32)
    cache = filled(model, [122, 5])
    with pytest.raises(AssertionError, match=r"item|scalar|lift"), Recorded():
        model.advance(next_tokens(2, 1)[0], cache)


@pytest.mark.slow
def test_an_engine_of_static_steps_has_the_same_tokens(toy_model: Any) -> None:
    """Sequences that end and join; prompts that continue from a prefix cache; sampled and greedy."""
    model = toy_model()

    def texts(static: bool) -> list[list[int]]:
        engine = DecodeEngine(model, longest=300, prefix_bytes=2**24, static_steps=static)
        found: dict[int, list[int]] = {}
        for prompts in ([[1, 2, 3], [4] * 20], [[5] * 9, [1, 2, 3]]):
            engine.add([Request(prompt, 6 + len(prompt) % 5, Sampling(0.7), seed=3) for prompt in prompts])
            for _ in range(4):
                for token in engine.step():
                    found.setdefault(token.request, []).append(token.id)
        for token in engine.tokens():
            found.setdefault(token.request, []).append(token.id)
        engine.add([Request([1, 2, 3, *found[0]], 4, Sampling(0))])
        return [*found.values(), [token.id for token in engine.tokens()]]

    assert texts(True) == texts(False)


def test_models_without_static_steps_are_refused(toy_model: Any) -> None:
    model = toy_model()
    assert static_obstacle(model) is None
    with pytest.raises(ValueError, match=r"\(--cuda-graphs\): drafts need several tokens in a step; leave it out"):
        DecodeEngine(model, longest=50, speculative=True, static_steps=True)
    model.layers[2].ffn.dispatch = lambda *_: None
    with pytest.raises(ValueError, match="experts are spread over processes"):
        DecodeEngine(model, longest=50, static_steps=True)
    rounded = toy_model(torch.float32, **WIDE)
    adapt(rounded, ["layers.1.attn.wq_b"], AdapterShape(rank=2, alpha=4.0, merge_into="fp8"))
    assert static_obstacle(rounded) == "weights are trained through the rounding of a format"
    streamed = made(toy_model, "quantized", torch.float32)
    layer = streamed.layers[1].attn.wq_b
    assert isinstance(layer, QuantizedLinear)
    layer.parts = StreamedParts([layer.stored()], torch.device("cpu"))
    assert static_obstacle(streamed) == "weights are streamed from the checkpoint"
    layer.parts, layer.fp8_inputs = None, True
    assert static_obstacle(streamed) == "numerics: serving rounds the inputs of quantized weights to FP8"
