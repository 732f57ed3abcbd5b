"""Requests that continue from the caches of earlier ones get the tokens and log-probabilities that they get alone."""

from collections.abc import Sequence

import pytest
import torch

from seektune.generate.capacity import UNLIMITED
from seektune.generate.controller import Controller
from seektune.generate.engine import DecodeEngine
from seektune.generate.plan import Admission, EngineOptions, StepPlan
from seektune.generate.prefix_cache import PrefixCache, PrefixPlaces
from seektune.generate.request import Request, Token
from seektune.generate.worker import DecodeWorker
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.kv_cache.cache import ROLLBACK, KVCache

from .test_engine import GREEDY, prompts

LONGEST = 600
ROOM = 10**8


@pytest.fixture(scope="module")
def model(toy_model) -> DeepseekV4ForCausalLM:
    return toy_model()


def engine(model: DeepseekV4ForCausalLM, prefix_bytes: int = ROOM) -> DecodeEngine:
    return DecodeEngine(model, longest=LONGEST, prefix_bytes=prefix_bytes)


def answers(decoding: DecodeEngine, *asked: Sequence[int], echo: bool = False) -> list[list[Token]]:
    """The tokens of requests that are added together."""
    numbers = decoding.add([Request(prompt, 9, GREEDY, alternatives=3, echo=echo) for prompt in asked])
    found: dict[int, list[Token]] = {number: [] for number in numbers}
    for token in decoding.tokens():
        found[token.request].append(token)
    return list(found.values())


def check_equal(found: list[Token], expected: list[Token], error: float = 1e-10) -> None:
    assert [token.id for token in found] == [token.id for token in expected]
    for mine, other in zip(found, expected, strict=True):
        assert mine.logprob == pytest.approx(other.logprob, abs=error)
        assert [id for id, _ in mine.alternatives] == [id for id, _ in other.alternatives]


@pytest.mark.slow
@pytest.mark.parametrize("length", [5, 127, 150])
def test_a_follow_up_continues_from_the_whole_sequence(model, length):
    """Prompt lengths within the window, at an entry's end, and beyond."""
    first, more = prompts(length, 40)
    decoding = engine(model)
    (answer,) = answers(decoding, first)
    follow_up = [*first, *(token.id for token in answer), *more]
    (found,) = answers(decoding, follow_up)
    assert [token.cached for token in found] == [length + 8, *[0] * 8], "the last token was never read"
    check_equal(found, answers(engine(model, 0), follow_up)[0])
    (again,) = answers(decoding, follow_up)
    assert again[0].cached == len(follow_up) - 1, "an equal prompt computes its last token"
    check_equal(again, found)


@pytest.mark.slow
def test_texts_that_part_continue_from_where_a_rollback_reaches(model):
    first, more = prompts(150, 30)
    decoding = engine(model)
    answers(decoding, first)
    near = [*first[:-2], *more]  # as where the mark after a prompt is another one in the history
    far = [*first[: -ROLLBACK - 20], *more]
    for prompt, cached in ((near, 148), (far, 0)):
        (found,) = answers(decoding, prompt)
        assert found[0].cached == cached
        check_equal(found, answers(engine(model, 0), prompt)[0])


@pytest.mark.slow
def test_conversations_share_their_system_prompt_from_the_third_on(model):
    """The second one keeps a copy where it parts from the first; two that are read together do, too."""
    system, *users = prompts(140, 20, 21, 22, 23)
    decoding = engine(model)
    cached = []
    for user in users[:3]:
        (found,) = answers(decoding, [*system, *user])
        check_equal(found, answers(engine(model, 0), [*system, *user])[0])
        cached.append(found[0].cached)
    assert cached[:2] == [0, 0]
    common = cached[2]
    assert common in range(140, 143), "the first tokens of the users may be equal, too"
    other = answers(decoding, [*system, *users[3]], [*system, *users[3], 7])
    assert all(found[0].cached >= 140 for found in other)


def test_a_copy_for_a_few_tokens_is_not_kept(model):
    short, *users = prompts(40, 60, 61, 62)
    decoding = engine(model)
    assert [answers(decoding, [*short, *user])[0][0].cached for user in users] == [0, 0, 0]


@pytest.mark.slow
def test_prompts_with_and_without_a_prefix_are_prefilled_together_in_chunks(model, monkeypatch):
    monkeypatch.setattr("seektune.generate.worker.CHUNK", 48)
    first, other, more = prompts(150, 60, 100)
    decoding = engine(model)
    answers(decoding, first)
    asked = [[*first, *more], other, [*first, *more[:3]], [*first, *more]]
    found = answers(decoding, *asked)
    assert [tokens[0].cached for tokens in found] == [150, 0, 150, 150]
    for tokens, prompt in zip(found, asked, strict=True):
        check_equal(tokens, answers(engine(model, 0), prompt)[0])


@pytest.mark.slow
def test_a_request_with_echo_computes_its_whole_prompt(model):
    (first,) = prompts(30)
    decoding = engine(model)
    answers(decoding, first)
    (found,) = answers(decoding, first, echo=True)
    assert found[0].cached == 0
    assert len(found[0].prompt) == len(first) - 1


@pytest.mark.slow
def test_a_stopped_sequence_is_kept(model):
    (first,) = prompts(20)
    decoding = engine(model)
    (number,) = decoding.add([Request(first, 100, GREEDY)])
    tokens = [token.id for _ in range(4) for token in decoding.step()]
    decoding.end(number)
    (found,) = answers(decoding, [*first, *tokens, 3])
    assert found[0].cached == 20 + len(tokens) - 1


@pytest.mark.slow
def test_fp32_with_the_cpu_kernels_agrees_to_1e5(toy_model):
    single = toy_model(torch.float32)
    first, more = prompts(140, 9)
    decoding = engine(single)
    (answer,) = answers(decoding, first)
    follow_up = [*first, *(token.id for token in answer), *more]
    (found,) = answers(decoding, follow_up)
    assert found[0].cached == 148
    check_equal(found, answers(engine(single, 0), follow_up)[0], error=1e-5)


def test_memory_is_bounded_and_the_least_recently_used_goes(model):
    cache = model.new_cache(1, LONGEST, grows=True)
    size = cache.nbytes()
    model.advance(torch.tensor([[5, 6, 7, 8]]), cache)
    prefixes = PrefixCache(3 * size)
    for last in (1, 2, 3):
        prefixes.store([9, 9, 9, last], cache, 0)
    assert prefixes.nbytes == 3 * size
    assert prefixes.find([9, 9, 9, 1, 4]) is not None
    prefixes.store([9, 9, 9, 4], cache, 0)
    assert prefixes.nbytes == 3 * size
    lengths = [
        found and found.lengths[0] for found in map(prefixes.find, ([9, 9, 9, last, 7] for last in (1, 2, 3, 4)))
    ]
    assert lengths == [4, 3, 4, 4], "the second was dropped: another is rolled back by a token"
    small = PrefixCache(size - 1)
    small.store([9], cache, 0)
    assert (small.nbytes, small.find([9, 9])) == (0, None)


def test_others_are_dropped_before_a_row_is_copied_and_one_without_memory_is_not_kept(model, monkeypatch):
    cache = model.new_cache(2, LONGEST, grows=True)
    model.advance(torch.tensor([[5] * 300, [6] * 300]), cache, [300, 3])
    assert [cache.row_bytes(row) for row in (0, 1)] == [cache.select([row]).nbytes() for row in (0, 1)]
    prefixes = PrefixCache(cache.row_bytes(0))
    prefixes.store([9, 9], cache, 1)
    seen: list[int] = []
    select = cache.select
    monkeypatch.setattr(cache, "select", lambda rows: seen.append(prefixes.nbytes) or select(rows))
    prefixes.store([8, 8], cache, 0)
    assert (seen, prefixes.nbytes) == ([0], cache.row_bytes(0))

    def none(_: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cache, "select", none)
    prefixes.store([7, 7], cache, 1)
    assert (prefixes.nbytes, prefixes.find([7, 7, 7])) == (0, None)


@pytest.mark.parametrize("speculative", [False, True])
@pytest.mark.parametrize("failing", ["new_cache", "retire"])
def test_a_rank_without_memory_reports_it_after_the_passes_that_others_wait_in(
    model, monkeypatch, failing: str, speculative: bool
):
    """Both passes are run without tokens: of the running sequences, and of prompts."""
    worker = DecodeWorker(model, EngineOptions(LONGEST, True, speculative, 0, cpu_kernels=False))
    asked = [Admission(0, number, Request([5, 6], 9, GREEDY)) for number in range(3)]
    for plan in (StepPlan(asked[:2], (), False, True), StepPlan((), (), True, False)):
        assert worker.step(plan).running == 2

    def none(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    if failing == "retire":
        monkeypatch.setattr(KVCache, "gather", none)
    else:
        monkeypatch.setattr(model, "new_cache", none)
    passes: list[str] = []
    monkeypatch.setattr(model, "advance_empty", lambda: passes.append("backbone"))
    monkeypatch.setattr(model, "draft_empty", lambda: passes.append("drafter"))
    report = worker.step(StepPlan(asked[2:], (0,) if failing == "retire" else (), True, True))
    assert isinstance(report.error, torch.OutOfMemoryError)
    assert passes.count("backbone") == 2
    assert passes.count("drafter") == (3 if speculative else 0), "propose, read and propose"


def test_a_conversation_goes_to_the_rank_that_read_its_system_prompt_twice():
    places = PrefixPlaces(ROLLBACK)
    system = [1] * 100
    places.record([*system, *[2] * 30], 1)
    assert places.saved([*system, *[3] * 30]) == {}
    places.record([*system, *[3] * 30], 1)
    assert places.saved([*system, *[4] * 30]) == {1: 100}


def test_a_follow_up_goes_to_the_rank_of_its_conversation_unless_that_is_busy():
    controller = Controller([UNLIMITED] * 2, prefixes=PrefixPlaces(ROLLBACK))
    first, second = list(range(100)), list(range(200, 250))
    controller.add([Request(first, 5)])
    controller.add([Request(second, 5)])
    placed = {admission.number: admission.rank for admission in controller.plan().admitted}
    assert sorted(placed.values()) == [0, 1]
    controller.add([Request([*first[:-1], 7, *second], 500), Request([*second, 8], 5), Request([1] * 30, 5)])
    later = {admission.number: admission.rank for admission in controller.plan().admitted}
    assert later == {2: placed[0], 3: placed[1], 4: placed[1]}
    controller.add([Request([*first[:-1], 9], 5)])
    (busy,) = controller.plan().admitted
    assert busy.rank == placed[1]
