"""Echoed prompts with log-probabilities: their values, their places in the text, and lm-eval's client of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.data.example import Example
from seektune.data.tokenizer import BOS
from seektune.evaluate.likelihood import likelihoods
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.parallel.model import ParallelModel
from seektune.serve.app import Served
from seektune.serve.limits import Limits

from .live import Live, live

TEXT = "/v1/completions"
PROMPT = "The man 🐋 picks up"


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> list[int]:
    return [tokenizer.bos_id, *tokenizer.encode(PROMPT)]


def expected(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities `[T - 1, V]` of what follows each token, by one forward."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)[:-1]


def test_an_echo_scores_every_token_of_the_prompt(toy: Live, model: Any, ids: list[int]) -> None:
    log_TV = expected(model, ids)
    choice = toy.post(TEXT, prompt=PROMPT, echo=True, logprobs=2, max_tokens=3, temperature=0).body["choices"][0]
    found = choice["logprobs"]
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert len(found["tokens"]) == len(ids) + 3
    values = torch.tensor(found["token_logprobs"][1 : len(ids)])
    following = torch.tensor(ids[1:])
    assert torch.allclose(values.double(), log_TV.double().gather(1, following[:, None])[:, 0], atol=1e-6)
    best = [max(each.values()) for each in found["top_logprobs"][1 : len(ids)]]
    assert torch.allclose(torch.tensor(best).double(), log_TV.double().max(dim=1).values, atol=1e-6)
    assert choice["text"].startswith(PROMPT)
    assert len(choice["text"]) > len(PROMPT)


def test_offsets_begin_after_a_bos_that_is_not_in_the_text(toy: Live, tokenizer: Any, ids: list[int]) -> None:
    by_text = toy.post(TEXT, prompt=PROMPT, echo=True, logprobs=0, max_tokens=1, seed=1).body["choices"][0]
    by_ids = toy.post(TEXT, prompt=ids, echo=True, logprobs=0, max_tokens=1, seed=1).body["choices"][0]
    bos = tokenizer.decode(ids[:1])
    assert by_ids["text"] == bos + by_text["text"]
    assert by_text["logprobs"]["text_offset"][:2] == [0, 0]
    later = by_text["logprobs"]["text_offset"][1:]
    assert by_ids["logprobs"]["text_offset"][1:] == [offset + len(bos) for offset in later]
    assert later[len(ids) - 1] == len(PROMPT)


def test_nothing_is_generated_with_max_tokens_0(toy: Live, ids: list[int]) -> None:
    body = toy.post(TEXT, prompt=[PROMPT, "A"], n=2, echo=True, logprobs=1, max_tokens=0).body
    assert [choice["text"] for choice in body["choices"]] == [PROMPT, PROMPT, "A", "A"]
    assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
    assert len(body["choices"][0]["logprobs"]["tokens"]) == len(ids)
    assert body["usage"]["completion_tokens"] == 0
    refused = toy.post(TEXT, prompt="A", max_tokens=0)
    assert refused.status == 400
    assert "max_tokens: 0 needs echo: true" in refused.error["message"]


def test_a_stream_begins_with_the_echo(toy: Live) -> None:
    asked: Any = {"prompt": PROMPT, "echo": True, "logprobs": 1, "max_tokens": 3, "temperature": 0}
    whole = toy.post(TEXT, **asked).body["choices"][0]
    chunks = [chunk["choices"][0] for chunk in toy.post(TEXT, **asked, stream=True).events()]
    assert chunks[0]["text"].startswith(PROMPT)
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for key, values in whole["logprobs"].items():
        assert [value for chunk in chunks for value in chunk["logprobs"][key]] == values
    plain = toy.post(TEXT, prompt=PROMPT, echo=True, max_tokens=3, temperature=0).body["choices"][0]
    assert (plain["text"], plain["logprobs"]) == (whole["text"], None)


@pytest.mark.slow
def test_prompts_longer_than_a_chunk_are_scored_whole(toy_model: Any, tokenizer: Any) -> None:
    model = toy_model(vocab_size=512)
    ids = [tokenizer.bos_id, *([5, 6, 7, 8, 9, 10, 11] * 30)]
    with live(Served({"toy": model}, tokenizer, Limits(max_model_len=400))) as server:
        asked: Any = {"prompt": [ids, ids[:3]], "echo": True, "logprobs": 0, "max_tokens": 1}
        found = server.post(TEXT, **asked).body["choices"]
    for prompt, choice in zip((ids, ids[:3]), found, strict=True):
        taught = Example(prompt, [False, *[True] * (len(prompt) - 1)], "prompt")
        (likelihood,) = likelihoods(ParallelModel.alone(model), [taught], 8192, tokenizer.pad_id)
        total = sum(choice["logprobs"]["token_logprobs"][1 : len(prompt)])
        assert total == pytest.approx(likelihood.log, abs=1e-4)


@pytest.mark.slow
def test_an_echo_is_the_same_with_drafts(model: Any, ids: list[int]) -> None:
    def echoed(speculative: bool) -> list[float]:
        request = Request(ids, 5, GREEDY, echo=True)
        first, *_ = DecodeEngine(model, [request], speculative).tokens()
        return [token.logprob for token in first.prompt]

    assert echoed(True) == pytest.approx(echoed(False), abs=1e-9)
    assert len(echoed(True)) == len(ids) - 1


@pytest.mark.slow
def test_local_completions_of_the_harness_gets_its_numbers(
    toy: Live, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    pytest.importorskip("tenacity", reason="lm-eval's extra `api` is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from seektune.evaluate.harness import HarnessModel

    tokenizer.save(tmp_path)
    client = LocalCompletionsAPI(
        base_url=f"{toy.url}{TEXT}",
        tokenizer_backend="huggingface",
        model="toy",
        tokenizer=str(tmp_path),
        max_length=2000,
    )
    pairs = [("The man", " picks up"), ("A", " b c"), ("Washing a car: a girl", " pushes the ladder and walks away.")]
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    # the released tokenizer adds no BOS, and the client none of its own
    begun = [Instance("loglikelihood", {}, (BOS + context, continuation), 0) for context, continuation in pairs]
    found = client.loglikelihood(begun)
    for (value, greedy), (own, own_greedy) in zip(
        found, HarnessModel(model, tokenizer).loglikelihood(asked), strict=True
    ):
        assert value == pytest.approx(own, abs=1e-4)
        assert greedy == own_greedy
