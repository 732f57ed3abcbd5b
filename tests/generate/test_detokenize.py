from dataclasses import replace

import pytest

from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate.detokenize import Detokenizer, generate_all, stream_text
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import Sampling

TEXTS = ["A man, a plan.", "naïve café 你好 🙂🙂 end", "🙂", "a\n\nb"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(512)


def detokenize(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> tuple[list[str], bool]:
    detokenizer, texts = Detokenizer(tokenizer, stops), []
    for token in ids:
        text, stopped = detokenizer.add(token)
        texts.append(text)
        if stopped:
            return texts, True
    return [*texts, detokenizer.flush()], False


@pytest.mark.parametrize("text", TEXTS)
def test_deltas_are_whole_characters(tokenizer, text):
    texts, _ = detokenize(tokenizer, tokenizer.encode(text), [])
    assert "".join(texts) == text
    assert "�" not in "".join(texts)
    assert texts[-1] == ""


def test_incomplete_character_is_replaced_only_at_the_end(tokenizer):
    ids = tokenizer.encode("ok 🙂")[:-1]
    texts, _ = detokenize(tokenizer, ids, [])
    assert "".join(texts[:-1]) == "ok "
    assert texts[-1].startswith("�")


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["plan"], "A man, a "),
        (["an", "man,"], "A m"),
        (["man, a p", "zz"], "A "),
        (["A man"], ""),
        (["", "."], "A man, a plan"),
    ],
)
def test_completion_ends_before_a_stop_string_that_spans_tokens(tokenizer, stops, expected):
    texts, stopped = detokenize(tokenizer, tokenizer.encode("A man, a plan."), stops)
    assert stopped
    assert "".join(texts) == expected


def test_partial_stop_string_is_held_back_until_it_is_ruled_out(tokenizer):
    texts, stopped = detokenize(tokenizer, tokenizer.encode("A man, a plan."), ["plans", "plan.."])
    assert not stopped
    assert "".join(texts) == "A man, a plan."
    assert texts[-1] == "plan."


@pytest.mark.slow
def test_completions_are_in_the_order_of_requests(toy_model, tokenizer):
    model = toy_model(vocab_size=512)
    greedy = Sampling(temperature=0)
    requests = [Request(tokenizer.encode(text), 5, greedy) for text in ("The man walks away", "A", "The man")]
    alone = [generate_all(model, tokenizer, [request])[0][0] for request in requests]
    together, drafts = generate_all(model, tokenizer, requests, rows=2, speculative=True)
    assert drafts.made > 0
    for answer, other in zip(together, alone, strict=True):
        assert answer.text == other.text
        assert answer.text == tokenizer.decode([token.id for token in answer.tokens])
        assert answer.end == "length"


@pytest.mark.slow
def test_stop_string_ends_only_its_own_request(toy_model, tokenizer):
    model = toy_model(vocab_size=512)
    requests = [Request(tokenizer.encode(text), 8, Sampling(temperature=0)) for text in ("The man walks", "A")]
    whole, _ = generate_all(model, tokenizer, requests)
    stop = whole[0].text[3:6]
    assert stop not in whole[1].text
    requests[0] = replace(requests[0], stops=(stop,))
    for speculative in (False, True):
        found = list(stream_text(DecodeEngine(model, requests, speculative), requests, tokenizer))
        texts = ["".join(piece.text for piece in found if piece.request == i) for i in (0, 1)]
        assert texts == [whole[0].text[: whole[0].text.index(stop)], whole[1].text]
        assert [piece.end for piece in found if piece.end] == ["stop", "length"]


def test_stop_token_adds_no_text(toy_model, tokenizer):
    model = toy_model(vocab_size=512)
    request = Request(tokenizer.encode("The man"), 8, Sampling(temperature=0))
    (whole,), _ = generate_all(model, tokenizer, [request])
    ids = [token.id for token in whole.tokens]
    (answer,), _ = generate_all(model, tokenizer, [Request(request.prompt, 8, request.sampling, frozenset({ids[2]}))])
    cut = ids.index(ids[2])
    assert answer.text == tokenizer.decode(ids[:cut])
    assert [token.id for token in answer.tokens] == ids[: cut + 1]
    assert answer.end == "stop"
