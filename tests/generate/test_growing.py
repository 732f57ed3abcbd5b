"""A cache that cannot grow ends the longest sequence, and the others continue."""

from collections.abc import Callable, Sequence

import pytest

from seektune.generate.cache_limit import CacheLimit
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request, Token
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.kv_cache.cache import FIRST_ROOM, KVCache
from seektune.model.kv_cache.layout import CacheStep

from .test_engine import GREEDY, prompts


@pytest.fixture(scope="module")
def model(toy_model: Callable[..., DeepseekV4ForCausalLM]) -> DeepseekV4ForCausalLM:
    return toy_model()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache grows beyond its first room."""
    reserve = KVCache.reserve

    def refuse(cache: KVCache, tokens: int) -> None:
        if tokens > FIRST_ROOM:
            raise RuntimeError("out of memory")
        reserve(cache, tokens)

    monkeypatch.setattr(KVCache, "reserve", refuse)


def ends(model: DeepseekV4ForCausalLM, memory: CacheLimit | None) -> list[tuple[int, str | None]]:
    """Number of tokens of each of two sequences, and how it ended; the first one reaches the first room."""
    long, short = prompts(FIRST_ROOM - 3, 5)
    engine = DecodeEngine(model, [Request(long, 9, GREEDY), Request(short, 9, GREEDY)], longest=400, memory=memory)
    found: list[list[Token]] = [[], []]
    for token in engine.tokens():
        found[token.request].append(token)
    return [(len(tokens), tokens[-1].end) for tokens in found]


def test_the_longest_sequence_ends_and_the_other_goes_on(model: DeepseekV4ForCausalLM, full: None) -> None:
    assert ends(model, CacheLimit()) == [(4, "memory"), (9, "length")]


def test_an_engine_without_a_limit_raises(model: DeepseekV4ForCausalLM, full: None) -> None:
    """Rollouts and evaluations must not take an unfinished text for a finished one."""
    with pytest.raises(RuntimeError, match="out of memory"):
        ends(model, None)


@pytest.mark.parametrize("speculative", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_cache_grows_within_a_pass(
    monkeypatch: pytest.MonkeyPatch, model: DeepseekV4ForCausalLM, speculative: bool
) -> None:
    """Memory that runs out within a pass would be an error of all requests: caches have room for it before.

    Sequences end, so that caches are copied, where others are about to outgrow the first room.
    """
    passes = []
    step = KVCache.step

    def fits(cache: KVCache, length: int, counts: Sequence[int] | None = None) -> CacheStep:
        needed = [before + count for before, count in zip(cache.lengths, counts or [length] * cache.rows, strict=True)]
        passes.append(max(needed) - cache.room)
        return step(cache, length, counts)

    monkeypatch.setattr(KVCache, "step", fits)
    lengths = [FIRST_ROOM - 4 + i for i in range(4)]
    requests = [Request(ids, 2 + i, GREEDY) for i, ids in enumerate(prompts(*lengths))]
    engine = DecodeEngine(model, requests, speculative, longest=400, memory=CacheLimit())
    assert len(list(engine.tokens())) == 2 + 3 + 4 + 5
    assert len(passes) > 4
    assert max(passes) <= 0
