"""The memory for KV caches: what a sequence takes, what a device has, and an engine that stays within it."""

from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest
import torch

from seektune.generate import worker
from seektune.generate.cache_limit import CacheLimit
from seektune.generate.capacity import UNLIMITED, BatchRows, CacheRoom, free_bytes
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request, Token
from seektune.generate.sampling_params import GREEDY
from seektune.model.config import DeepseekV4Config
from seektune.model.kv_cache.cache import KVCache
from seektune.model.kv_cache.size import CacheSize

from ..conftest import Build

REQUESTS = [Request([1 + i, 2], 5, GREEDY) for i in range(5)]


@pytest.mark.parametrize("layers", [range(4), range(1, 2), range(2, 4)])
@pytest.mark.parametrize("room", [256, 1001])
def test_the_size_of_a_cache_is_that_of_its_buffers(
    toy_config: Callable[..., DeepseekV4Config], layers: range, room: int
):
    config = toy_config()
    made = KVCache.of(config, layers, 3, room, torch.bfloat16, torch.device("cpu"))
    assert made.nbytes() == 3 * CacheSize.of(config, layers, room, torch.bfloat16).bytes(room)


def test_processes_and_engines_share_the_free_memory_of_the_host(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8000))
    cpu = torch.device("cpu")
    assert free_bytes(CacheLimit(0.5), cpu) == 4000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_bytes(CacheLimit(1.0, engines=4), cpu) == 1000
    with pytest.raises(ValueError, match=r"--gpu-memory-utilization=1\.5 must be above 0 and at most 1"):
        CacheLimit(1.5)


@pytest.mark.slow
def test_an_engine_stays_within_its_memory_and_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch, toy_model: Build):
    model = toy_model()
    one = model.cache_size(64).bytes(65)

    def tokens(room: int) -> tuple[list[Token], int]:
        monkeypatch.setattr(worker, "free_bytes", lambda *_: room)
        engine = DecodeEngine(model, REQUESTS, longest=64, cpu_kernels=False, memory=CacheLimit())
        found: list[Token] = []
        most = 0
        while not engine.done:
            found += engine.step()
            most = max(most, engine.cache_bytes)
        return sorted(found, key=lambda each: each.request), most

    few, held = tokens(4 * one)
    assert held <= 2 * one
    many, more = tokens(10 * one)
    assert more > 4 * one
    assert [(each.request, each.id, each.end) for each in few] == [(each.request, each.id, each.end) for each in many]
    with pytest.raises(ValueError, match="a sequence of up to 7 tokens needs"):
        tokens(one)


@pytest.mark.parametrize("free", [0, 511, 512, 3000, 4096, 10**6])
@pytest.mark.parametrize("ahead", [0, 3])
def test_the_tokens_that_fit_are_the_longest_sequence_that_is_admitted(free: int, ahead: int):
    room = CacheRoom(CacheSize(0, {1: 1}), free, 3000, ahead, grows=True)
    fits = [length for length in range(1, 3001) if room.left([BatchRows(1, length)]) >= 0]
    assert room.tokens() == max(fits, default=0)
    assert UNLIMITED.tokens() > 10**18


def test_a_prefix_cache_takes_at_most_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch, toy_model: Build):
    model = toy_model()
    one = model.cache_size(64).bytes(65)
    monkeypatch.setattr(worker, "free_bytes", lambda *_: 3 * one)
    engine = DecodeEngine(model, longest=64, prefix_bytes=2 * 10**9, memory=CacheLimit())
    assert (engine.room.prefixes, engine.room.free) == (3 * one // 4, 3 * one - 3 * one // 4)
    engine.add(REQUESTS[:1])
    monkeypatch.setattr(worker, "free_bytes", lambda *_: one)
    small = DecodeEngine(model, longest=64, prefix_bytes=2 * 10**9, memory=CacheLimit())
    with pytest.raises(ValueError, match=r"beside the weights and a prefix cache of .*\(--prefix-cache-gb\)"):
        small.add(REQUESTS[:1])
