from dataclasses import replace

import pytest

from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate.detokenize import Detokenizer, answer_all, pieces
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import Sampling

TEXTS = ["A man, a plan.", "naïve café 你好 🙂🙂 end", "🙂", "a\n\nb"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(512)


def heard(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> tuple[list[str], bool]:
    ear, given = Detokenizer(tokenizer, stops), []
    for token in ids:
        text, stopped = ear.hear(token)
        given.append(text)
        if stopped:
            return given, True
    return [*given, ear.rest()], False


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_in_whole_characters(tokenizer, text):
    given, _ = heard(tokenizer, tokenizer.encode(text), [])
    assert "".join(given) == text
    assert "�" not in "".join(given)
    assert given[-1] == ""


def test_an_incomplete_character_is_shown_at_the_end_only(tokenizer):
    ids = tokenizer.encode("ok 🙂")[:-1]
    given, _ = heard(tokenizer, ids, [])
    assert "".join(given[:-1]) == "ok "
    assert given[-1].startswith("�")


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
def test_an_answer_ends_before_a_stop_string_that_tokens_cut_apart(tokenizer, stops, expected):
    given, stopped = heard(tokenizer, tokenizer.encode("A man, a plan."), stops)
    assert stopped
    assert "".join(given) == expected


def test_what_may_become_a_stop_string_is_held_back_and_given_when_it_does_not(tokenizer):
    given, stopped = heard(tokenizer, tokenizer.encode("A man, a plan."), ["plans", "plan.."])
    assert not stopped
    assert "".join(given) == "A man, a plan."
    assert given[-1] == "plan."


def test_answers_stand_in_the_order_of_the_requests(toy_model, tokenizer):
    model = toy_model(vocab_size=512)
    greedy = Sampling(temperature=0)
    requests = [Request(tokenizer.encode(text), 5, greedy) for text in ("The man walks away", "A", "The man")]
    alone = [answer_all(model, tokenizer, [request])[0][0] for request in requests]
    together, drafts = answer_all(model, tokenizer, requests, rows=2, speculative=True)
    assert drafts.made > 0
    for answer, other in zip(together, alone, strict=True):
        assert answer.text == other.text
        assert answer.text == tokenizer.decode([token.id for token in answer.tokens])
        assert answer.end == "length"


def test_a_stop_string_ends_the_decoding_of_its_text_alone(toy_model, tokenizer):
    model = toy_model(vocab_size=512)
    requests = [Request(tokenizer.encode(text), 8, Sampling(temperature=0)) for text in ("The man walks", "A")]
    whole, _ = answer_all(model, tokenizer, requests)
    stop = whole[0].text[3:6]
    assert stop not in whole[1].text
    requests[0] = replace(requests[0], stops=(stop,))
    for speculative in (False, True):
        found = list(pieces(DecodeEngine(model, requests, speculative), requests, tokenizer))
        texts = ["".join(piece.text for piece in found if piece.request == i) for i in (0, 1)]
        assert texts == [whole[0].text[: whole[0].text.index(stop)], whole[1].text]
        assert [piece.end for piece in found if piece.end] == ["stop", "length"]


def test_a_stop_token_adds_no_text(toy_model, tokenizer):
    model = toy_model(vocab_size=512)
    request = Request(tokenizer.encode("The man"), 8, Sampling(temperature=0))
    (whole,), _ = answer_all(model, tokenizer, [request])
    ids = [token.id for token in whole.tokens]
    (answer,), _ = answer_all(model, tokenizer, [Request(request.prompt, 8, request.sampling, frozenset({ids[2]}))])
    cut = ids.index(ids[2])
    assert answer.text == tokenizer.decode(ids[:cut])
    assert [token.id for token in answer.tokens] == ids[: cut + 1]
    assert answer.end == "stop"
