"""Requests that join a running batch get the same tokens as alone; caches follow the running sequences."""

import pytest
import torch

from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import Sampling
from seektune.model.causal_lm import DeepseekV4ForCausalLM

from .test_engine import GREEDY, generated, prompts

LONGEST = 600


@pytest.fixture(scope="module")
def model(toy_model) -> DeepseekV4ForCausalLM:
    return toy_model()


def one_by_one(model: DeepseekV4ForCausalLM, requests: list[Request]) -> list[list[int]]:
    return [generated(model, [request])[0] for request in requests]


def joined(
    model: DeepseekV4ForCausalLM, requests: list[Request], times: list[int], speculative: bool, chunk: int = 4096
) -> list[list[int]]:
    """Generate with request i added before step `times[i]`."""
    decoding = DecodeEngine(model, speculative=speculative, longest=LONGEST)
    found: dict[int, list[int]] = {}
    names: dict[int, int] = {}
    step = 0
    while step <= max(times) or not decoding.done:
        due = [i for i, time in enumerate(times) if time == step]
        names |= dict(zip(decoding.add([requests[i] for i in due]), due, strict=True))
        for token in decoding.step():
            found.setdefault(names[token.request], []).append(token.id)
        step += 1
    return [found[i] for i in range(len(requests))]


@pytest.mark.slow
@pytest.mark.parametrize("speculative", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_joining_requests_match_single_requests(model, speculative):
    """Prompt lengths around an entry of each ratio; several at once, equal ones, one after all others have ended."""
    requests = [Request(each, 9, GREEDY) for each in prompts(5, 124, 127, 3, 1, 30)]
    requests += [requests[3], Request(prompts(8)[0], 4, Sampling(temperature=0.9, top_k=20), seed=3)]
    times = [0, 2, 3, 3, 7, 40, 3, 3]
    expected = one_by_one(model, requests)
    assert joined(model, requests, times, speculative)[:-1] == expected[:-1]
    if not speculative:  # with drafts, sampling consumes other random numbers
        assert joined(model, requests, times, False)[-1] == expected[-1]


@pytest.mark.slow
def test_long_prompt_is_prefilled_in_chunks_while_others_decode(model, monkeypatch):
    monkeypatch.setattr("seektune.generate.worker.CHUNK", 32)
    requests = [Request(each, 12, GREEDY) for each in prompts(5, 150, 40)]
    decoding = DecodeEngine(model, requests[:1], longest=LONGEST)
    found: list[list[int]] = [[] for _ in requests]
    for step in range(6):
        if step == 1:
            decoding.add(requests[1:])
        assert [token.request for token in decoding.step()] == [0]
    monkeypatch.undo()
    for token in decoding.tokens():
        found[token.request].append(token.id)
    assert found[1:] == one_by_one(model, requests[1:])


@pytest.mark.slow
def test_sequence_outgrows_its_first_cache(model):
    requests = [Request(prompts(250)[0], 20, GREEDY), Request(prompts(3)[0], 40, GREEDY)]
    decoding = DecodeEngine(model, requests, longest=4000)
    found: list[list[int]] = [[], []]
    for token in decoding.tokens():
        found[token.request].append(token.id)
    assert found == one_by_one(model, requests)


@pytest.mark.parametrize("speculative", [False, True])
@pytest.mark.slow
def test_request_can_be_cancelled_at_any_time(model, monkeypatch, speculative):
    monkeypatch.setattr("seektune.generate.worker.CHUNK", 64)
    requests = [Request(each, 10, GREEDY) for each in prompts(5, 150, 90)]
    expected = one_by_one(model, requests)
    for when in (0, 1, 3, 5, 6):  # before it is read, while it is read, while it grows
        decoding = DecodeEngine(model, requests[:1], speculative, longest=LONGEST)
        found: list[list[int]] = [[] for _ in requests]
        for step in range(60):
            if step == 1:
                decoding.add(requests[1:])
            if step == when + 1:
                decoding.end(1)
            for token in decoding.step():
                found[token.request].append(token.id)
        assert decoding.done
        assert [found[0], found[2]] == [expected[0], expected[2]]
        assert found[1] == expected[1][: len(found[1])]
        assert len(found[1]) < 10


def test_cache_memory_follows_the_running_sequences(model):
    """Nothing remains of a long sequence that has ended, and nothing is reserved for a maximum length."""
    short, long = prompts(4, 500)

    decoding = DecodeEngine(model, [Request(short, 90_000, GREEDY)], longest=100_000)
    decoding.step()
    short_size = decoding.cache_bytes
    assert short_size < model.new_cache(1, 300).nbytes()
    decoding.add([Request(long, 5, GREEDY)])
    decoding.step()
    assert decoding.cache_bytes > 2 * short_size
    while len([*decoding.step()]) == 2:
        pass
    assert decoding.cache_bytes == short_size
    decoding.end(0)
    assert decoding.cache_bytes == 0


def test_request_beyond_the_positions_of_the_model_is_refused(model):
    most = model.config.max_position_embeddings
    said = rf"the length of the prompt and its new tokens \({most + 1}\) exceeds the model's {most} positions"
    with pytest.raises(ValueError, match=said):
        DecodeEngine(model, [Request([1, 2], most - 1, GREEDY)])


def test_request_beyond_the_maximum_length_is_refused(model):
    decoding = DecodeEngine(model, longest=10)
    fine, wrong = Request([1, 2], 8, GREEDY), Request([1, 2], 9, GREEDY)
    with pytest.raises(ValueError, match="a sequence of up to 11 tokens exceeds the maximum of 10"):
        decoding.add([fine, wrong])
    assert decoding.done
    assert decoding.add([fine]) == [0]
    assert len(list(decoding.tokens())) == 8


@pytest.mark.slow
def test_gathered_caches_continue_as_before(model):
    """Rows in any order, of caches whose windows end at different positions."""
    tokens = torch.randint(64, (3, 200), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = model(tokens).logits
    first, second = (model.new_cache(rows, LONGEST, grows=True) for rows in (2, 1))
    model(tokens[:2, :150], cache=first)
    for i in range(9):
        model(tokens[2:, i : i + 1], cache=second)
    both = type(first).gather([(second, [0]), (first, [1, 0])])
    assert both.lengths == [9, 150, 150]
    chunk = torch.stack([tokens[2, 9:29], tokens[1, 150:170], tokens[0, 150:170]])
    found = model(chunk, cache=both).logits
    expected = torch.stack([logits[2, 9:29], logits[1, 150:170], logits[0, 150:170]])
    assert float((found - expected).abs().max()) < 1e-10
    both.rollback([3, 0, 16])
    again = torch.stack([tokens[2, 26:29], tokens[1, 170:173], tokens[0, 154:157]])
    expected = torch.stack([logits[2, 26:29], logits[1, 170:173], logits[0, 154:157]])
    assert float((model(again, cache=both).logits - expected).abs().max()) < 1e-10
