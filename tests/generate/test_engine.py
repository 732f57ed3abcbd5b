"""Batched decoding matches one full forward per token for each request; drafts change only the speed."""

import math
from collections import Counter

import pytest
import torch

from seektune.generate.engine import DecodeEngine
from seektune.generate.plan import Admission, EngineOptions, StepPlan
from seektune.generate.request import Request
from seektune.generate.sampling import Sampler
from seektune.generate.sampling_params import Sampling
from seektune.generate.worker import DecodeWorker
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.conftest import DSPARK

from .drafting import sometimes_right

GREEDY = Sampling(temperature=0)
NEW = 8


@pytest.fixture(scope="module")
def model(toy_model) -> DeepseekV4ForCausalLM:
    return toy_model()


@pytest.fixture(scope="module")
def drafting(toy_model) -> DeepseekV4ForCausalLM:
    return sometimes_right(toy_model())


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(64, (length,), generator=generator).tolist() for length in lengths]


def full_forwards(model: DeepseekV4ForCausalLM, request: Request) -> list[int]:
    """A full forward per token."""
    ids, sampler = list(request.prompt), Sampler(request.sampling, request.seed, request.prompt)
    for _ in range(request.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        ids.append(sampler.draw(sampler.distribution(logits)))
        sampler.observe(ids[-1])
        if ids[-1] in request.stop_ids:
            break
    return ids[len(request.prompt) :]


def generated(model: DeepseekV4ForCausalLM, requests: list[Request], speculative: bool = False) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in requests]
    for token in DecodeEngine(model, requests, speculative).tokens():
        found[token.request].append(token.id)
    return found


@pytest.mark.slow
def test_batch_of_different_lengths_matches_full_forwards(model):
    sampling = Sampling(temperature=0.8, top_k=20, repetition_penalty=1.2)
    requests = [Request(each, NEW, GREEDY) for each in prompts(1, 124, 5)]
    requests += [Request(each, NEW - 3, sampling, seed=i) for i, each in enumerate(prompts(30, 3))]
    assert generated(model, requests) == [full_forwards(model, request) for request in requests]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["model", "drafting"])
def test_greedy_speculative_decoding_matches_plain(which, request):
    model = request.getfixturevalue(which)
    requests = [Request(each, new, GREEDY) for each, new in zip(prompts(1, 124, 2, 30), (18, 7, 1, 2), strict=True)]
    decoding = DecodeEngine(model, requests, speculative=True)
    found = Counter(token.request for token in decoding.tokens())
    assert generated(model, requests, speculative=True) == generated(model, requests)
    assert [found[i] for i in range(4)] == [18, 7, 1, 2]
    assert 0 <= decoding.drafts.accepted <= decoding.drafts.made
    if which == "drafting":
        # drafts save forwards: the longest completion has 17 tokens after its first
        assert decoding.drafts.rate > 0.2
        assert 0 < decoding.drafts.accepted < decoding.drafts.made


@pytest.mark.slow
def test_sampled_speculative_decoding_has_the_same_distribution(drafting):
    """Triples of tokens of 3,000 completions of one prompt, against their exact probabilities."""
    (prompt,), many = prompts(6), 3000
    sampling = Sampling(temperature=1.5, top_k=3)
    counts: Counter[tuple[int, ...]] = Counter()
    for start in range(0, many, 500):
        requests = [Request(prompt, 3, sampling, seed=i) for i in range(start, start + 500)]
        decoding = DecodeEngine(drafting, requests, speculative=True)
        texts: dict[int, list[int]] = {}
        for token in decoding.tokens():
            texts.setdefault(token.request, []).append(token.id)
        assert 0 < decoding.drafts.accepted < decoding.drafts.made
        counts.update(tuple(text) for text in texts.values())
    expected = {(): 1.0}
    sampler = Sampler(sampling, 0, [])
    for _ in range(3):
        longer = {}
        for text, share in expected.items():
            with torch.no_grad():
                logits = drafting(torch.tensor([[*prompt, *text]])).logits[0, -1]
            for token, part in enumerate(sampler.distribution(logits).tolist()):
                if part:
                    longer[(*text, token)] = share * part
        expected = longer
    assert set(counts) <= set(expected)
    assert len(expected) == 27
    for text, share in expected.items():
        assert abs(counts[text] / many - share) < 4.5 * math.sqrt(share * (1 - share) / many), text


def test_equal_prompts_are_prefilled_once(model, monkeypatch):
    (prompt,) = prompts(20)
    requests = [Request(prompt, 4, seed=seed) for seed in (1, 2, 1)]
    rows = []
    advance = model.advance
    monkeypatch.setattr(model, "advance", lambda ids, *rest: (rows.append(ids.shape), advance(ids, *rest))[1])
    found = generated(model, requests)
    assert rows == [(1, 20), (3, 1), (3, 1), (3, 1)]
    assert found[0] == found[2] != found[1]


@pytest.mark.slow
def test_chunked_prefill_matches_whole_prefill(model, monkeypatch):
    requests = [Request(each, 3, GREEDY) for each in prompts(50, 9, 1)]
    whole = [generated(model, requests, speculative) for speculative in (False, True)]
    monkeypatch.setattr("seektune.generate.worker.CHUNK", 24)
    assert [generated(model, requests, speculative) for speculative in (False, True)] == whole


@pytest.mark.slow
def test_stop_token_ends_only_its_own_request(model):
    requests = [Request(each, NEW, GREEDY) for each in prompts(4, 7)]
    whole = generated(model, requests)
    stop = whole[0][3]
    requests[0] = Request(requests[0].prompt, NEW, GREEDY, stop_ids=frozenset({stop}))
    for speculative in (False, True):
        decoding = DecodeEngine(model, requests, speculative)
        tokens = list(decoding.tokens())
        first = [token for token in tokens if token.request == 0]
        assert [token.id for token in first] == whole[0][: whole[0].index(stop) + 1]
        assert [token.end for token in first] == [None] * (len(first) - 1) + ["stop"]
        rest = [token for token in tokens if token.request == 1]
        assert [token.id for token in rest] == whole[1]
        assert rest[-1].end == "length"
        assert decoding.step() == []


@pytest.mark.slow
def test_ended_request_does_not_affect_the_others(model):
    requests = [Request(each, NEW, GREEDY) for each in prompts(4, 7)]
    whole = generated(model, requests)
    decoding = DecodeEngine(model, requests, speculative=True)
    first = decoding.step()
    decoding.end(0)
    rest = list(decoding.tokens())
    assert {token.request for token in rest} == {1}
    assert [token.id for token in [*first, *rest] if token.request == 1] == whole[1]
    unread = DecodeEngine(model, requests)
    unread.end(1)
    assert [token.id for token in unread.tokens()] == whole[0]


@pytest.mark.slow
def test_log_probabilities_are_before_temperature_and_truncation(model):
    request = Request(prompts(9)[0], 3, Sampling(temperature=0.5, top_k=2), alternatives=3)
    for speculative in (False, True):
        ids = list(request.prompt)
        for token in DecodeEngine(model, [request], speculative).tokens():
            with torch.no_grad():
                log = model(torch.tensor([ids])).logits[0, -1].log_softmax(dim=0)
            assert token.logprob == pytest.approx(float(log[token.id]), abs=1e-9)
            best = log.topk(3)
            assert [each for each, _ in token.alternatives] == best.indices.tolist()
            assert [value for _, value in token.alternatives] == pytest.approx(best.values.tolist(), abs=1e-9)
            ids.append(token.id)
        assert len(ids) == 12


@pytest.mark.parametrize("temperature", [0, 1])
def test_nan_logits_raise(toy_model, temperature):
    model = toy_model()
    with torch.no_grad():
        model.norm.weight[3] = torch.nan
    with pytest.raises(ArithmeticError, match="logits are NaN"):
        DecodeEngine(model, [Request([1, 2], 3, Sampling(temperature=temperature))]).step()


def test_invalid_requests_are_refused(model, toy_model):
    for request, message in (
        (Request([], 3), "a prompt needs at least one token"),
        (Request([64], 3), "ids must lie in the vocabulary, 0 to 63"),
        (Request([1], 0), "max_new_tokens must be 1 or more, not 0"),
    ):
        with pytest.raises(ValueError, match=message):
            DecodeEngine(model, [request])
    without = toy_model(num_nextn_predict_layers=0, compress_ratios=[0, 4, 128, 4])
    with pytest.raises(ValueError, match="this model has none"):
        DecodeEngine(without, [Request([1], 1)], speculative=True)


@pytest.fixture(scope="module")
def dspark(toy_model) -> DeepseekV4ForCausalLM:
    return sometimes_right(toy_model(drafter=True, **DSPARK | {"dspark_markov_rank": 32}))


@pytest.mark.slow
def test_greedy_decoding_with_dspark_matches_plain(dspark):
    """Every count of accepted tokens occurs, rows end inside a block, and others join later."""
    lengths = zip(prompts(1, 124, 2, 30, 17), (40, 7, 1, 2, 33), strict=True)
    requests = [Request(each, new, GREEDY) for each, new in lengths]
    decoding = DecodeEngine(dspark, requests, speculative=True)
    found = Counter(token.request for token in decoding.tokens())
    assert generated(dspark, requests, speculative=True) == generated(dspark, requests)
    assert [found[i] for i in range(5)] == [40, 7, 1, 2, 33]
    counts = decoding.drafts
    assert set(counts.tried) == {0, 1, 2, 3, 4}
    assert all(counts.tried[slot] <= counts.passed[slot - 1] for slot in range(1, 5))
    assert 0 < counts.accepted < counts.made


@pytest.mark.slow
def test_dspark_stops_at_a_stop_token(dspark):
    (prompt,) = prompts(9)
    plain = generated(dspark, [Request(prompt, 30, GREEDY)])[0]
    stop = frozenset({plain[7]})
    request = Request(prompt, 30, GREEDY, stop)
    assert generated(dspark, [request], speculative=True)[0] == plain[: plain.index(plain[7]) + 1]


@pytest.mark.slow
def test_requests_that_join_later_draft_with_dspark(dspark):
    requests = [Request(each, 12, GREEDY) for each in prompts(5, 40, 3)]
    engine = DecodeEngine(dspark, requests[:1], speculative=True, longest=64)
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for later in (requests[1:2], requests[2:], []):
        for token in engine.step():
            found[token.request].append(token.id)
        engine.add(later)
    for token in engine.tokens():
        found[token.request].append(token.id)
    assert [found[i] for i in range(3)] == generated(dspark, requests)


def test_a_model_without_its_drafter_cannot_draft(toy_model):
    with pytest.raises(ValueError, match="MTP block or DSpark stages"):
        DecodeEngine(toy_model(**DSPARK), speculative=True)


def test_memory_that_runs_out_after_the_passes_is_reported(toy_model) -> None:
    """Other ranks wait in the passes of a step, and then for every rank's report."""
    model = toy_model()
    error = torch.OutOfMemoryError("no memory for logits")

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise error

    model.__setattr__("logits", fail)
    request = Request(prompts(3)[0], 2, GREEDY)
    worker = DecodeWorker(model, EngineOptions(request.longest))
    assert worker.step(StepPlan([Admission(0, 0, request)], [], decode=False, prefill=True)).error is error
    with pytest.raises(torch.OutOfMemoryError, match="no memory for logits"):
        DecodeEngine(model, [request]).step()


def test_after_an_error_a_rank_still_takes_part_in_the_pass_of_the_drafter(toy_model) -> None:
    """Others, whose experts it has, are in that pass."""
    model = toy_model()
    took_part: list[str] = []
    model.__setattr__("draft_empty", lambda: took_part.append("a pass without tokens"))
    model.__setattr__("logits", lambda hidden_BTD: torch.full((*hidden_BTD.shape[:-1], 64), torch.nan))
    request = Request(prompts(3)[0], 2, GREEDY)
    worker = DecodeWorker(model, EngineOptions(request.longest, speculative=True))
    report = worker.step(StepPlan([Admission(0, 0, request)], [], decode=True, prefill=True))
    assert "NaN" in str(report.error)
    assert took_part == ["a pass without tokens"] * 2
