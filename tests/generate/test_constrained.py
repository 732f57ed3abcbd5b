"""Decoding with grammars: each sequence follows its own, others are not changed, drafts change only the speed."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from llguidance import LLParserLimits

from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate.answer_grammar import answer_grammar, json_rules, regex_rules
from seektune.generate.detokenize import generate_all
from seektune.generate.engine import DecodeEngine
from seektune.generate.grammar import Grammar, compile_grammar
from seektune.generate.request import Request, Token
from seektune.generate.sampling import Sampler
from seektune.generate.sampling_params import Sampling
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.conftest import DSPARK

from .grammars import VOCAB, terse
from .json_schemas import REAL, closed, made_document, made_schema
from .test_grammar import check

GREEDY = Sampling(temperature=0)
NUMBERS = closed(
    a={"type": "integer", "minimum": 0, "maximum": 999},
    b={"type": "array", "items": {"enum": ["red", "blue", None]}, "maxItems": 3},
    c={"type": "string", "maxLength": 6},
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(VOCAB)


@pytest.fixture(scope="module")
def model(toy_model, tokenizer: Tokenizer) -> DeepseekV4ForCausalLM:
    return terse(toy_model(vocab_size=VOCAB), tokenizer)


@pytest.fixture(scope="module")
def grammar(tokenizer: Tokenizer) -> Grammar:
    return compile_grammar(answer_grammar([json_rules(NUMBERS)], tokenizer, False), VOCAB)


def requests_of(tokenizer: Tokenizer, sampling: Sampling, grammars: list[Grammar | None]) -> list[Request]:
    """One request for each grammar, with prompts and seeds of their own."""
    eos = frozenset({tokenizer.eos_id})
    return [
        Request([0, 300 + i, 301], 80 if grammar else 8, sampling, eos, seed=i, grammar=grammar)
        for i, grammar in enumerate(grammars)
    ]


def tokens_of(model: DeepseekV4ForCausalLM, requests: list[Request], speculative: bool = False) -> list[list[Token]]:
    found: list[list[Token]] = [[] for _ in requests]
    for token in DecodeEngine(model, requests, speculative).tokens():
        found[token.request].append(token)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.3, top_k=40, top_p=0.95, repetition_penalty=1.1)])
def test_sequences_with_and_without_grammars_are_decoded_together(model, tokenizer, grammar, sampling) -> None:
    requests = requests_of(tokenizer, sampling, [grammar, None, grammar, None])
    together = tokens_of(model, requests)
    for request, tokens in zip(requests, together, strict=True):
        (alone,) = tokens_of(model, [request])
        assert [token.id for token in tokens] == [token.id for token in alone]
    for tokens in (together[0], together[2]):
        assert tokens[-1].end == "stop"
        check(tokenizer.decode([token.id for token in tokens[:-1]]), NUMBERS)
    free = [[token.id for token in tokens] for tokens in (together[1], together[3])]
    unconstrained = requests_of(tokenizer, sampling, [None] * 4)
    assert free == [[token.id for token in tokens_of(model, [unconstrained[i]])[0]] for i in (1, 3)]


@pytest.mark.slow
def test_answers_of_a_model_with_random_weights_are_valid(model, tokenizer) -> None:
    """To over a hundred schemas; some answers are cut off by the length."""
    generator = random.Random(7)
    schemas = [*REAL, *(made_document(generator) for _ in range(30)), *(made_schema(generator) for _ in range(90))]
    grammars = [compile_grammar(answer_grammar([json_rules(schema)], tokenizer, False), VOCAB) for schema in schemas]
    answers, _ = generate_all(model, tokenizer, requests_of(tokenizer, Sampling(), grammars), rows=len(schemas))
    complete = [(answer.text, schema) for answer, schema in zip(answers, schemas, strict=True) if answer.end == "stop"]
    assert len(complete) > 100
    for text, schema in complete:
        check(text, schema)


@pytest.mark.slow
def test_log_probabilities_are_the_model_s_own(model, tokenizer, grammar) -> None:
    (request,) = requests_of(tokenizer, GREEDY, [grammar])
    (tokens,) = tokens_of(model, [replace(request, alternatives=3)])
    ids = [*request.prompt, *(token.id for token in tokens)]
    with torch.no_grad():
        log_TV = model.logits(model.hidden(model.advance(torch.tensor([ids]), model.new_cache(1, len(ids) + 1))))[0]
    log_TV = log_TV.log_softmax(dim=-1)[len(request.prompt) - 1 : -1]
    for token, log_V in zip(tokens, log_TV, strict=True):
        assert token.logprob == pytest.approx(float(log_V[token.id]), abs=1e-9)
        assert [id for id, _ in token.alternatives] == log_V.topk(3).indices.tolist()
    assert any(token.id not in dict(token.alternatives) for token in tokens)  # the grammar forbade the likeliest


@pytest.mark.slow
def test_answers_may_be_cut_off_by_the_length(model, tokenizer, grammar) -> None:
    (request,) = requests_of(tokenizer, GREEDY, [grammar])
    (whole,) = tokens_of(model, [request])
    (cut,) = tokens_of(model, [replace(request, max_new_tokens=5)])
    assert [token.id for token in cut] == [token.id for token in whole[:5]]
    assert cut[-1].end == "length"
    ((text,), _) = generate_all(model, tokenizer, [replace(request, stops=("a",))])
    assert (text.text, text.end) == ('{"', "stop")


@pytest.mark.slow
@pytest.mark.parametrize("stages", [False, True], ids=["mtp", "dspark"])
def test_greedy_drafts_change_no_constrained_answer(toy_model, tokenizer, grammar, stages: bool) -> None:
    changes = DSPARK | {"dspark_noise_token_id": VOCAB - 1} if stages else {}
    model = terse(toy_model(vocab_size=VOCAB, drafter=stages, **changes), tokenizer)
    requests = requests_of(tokenizer, GREEDY, [grammar, None, grammar])
    engine = DecodeEngine(model, requests, speculative=True)
    drafted: list[list[int]] = [[] for _ in requests]
    for token in engine.tokens():
        drafted[token.request].append(token.id)
    assert drafted == [[token.id for token in tokens] for tokens in tokens_of(model, requests)]
    assert engine.drafts.accepted > 0


@pytest.mark.slow
def test_sampled_drafts_do_not_change_the_distribution_of_constrained_answers(toy_model, tokenizer) -> None:
    """Texts of two letters, against their exact probabilities."""
    model = toy_model(vocab_size=VOCAB)
    grammar = compile_grammar(answer_grammar([regex_rules("[ab][abc]")], tokenizer, False), VOCAB)
    (first,) = requests_of(tokenizer, Sampling(temperature=2.0), [grammar])
    many = 300
    requests = [replace(first, seed=seed) for seed in range(many)]
    found = Counter(
        tokenizer.decode([token.id for token in tokens[:-1]]) for tokens in tokens_of(model, requests, speculative=True)
    )
    expected = exact(model, first, tokenizer)
    assert found.keys() <= expected.keys()
    assert sum(expected.values()) == pytest.approx(1)
    for text, share in expected.items():
        assert abs(found[text] / many - share) < 4.5 * (share * (1 - share) / many) ** 0.5, text


def exact(model: DeepseekV4ForCausalLM, request: Request, tokenizer: Tokenizer) -> Counter[str]:
    """The probabilities of all texts that a request may be completed with."""
    assert request.grammar is not None
    paths = {(): 1.0}
    found: Counter[str] = Counter()
    while paths:
        longer = {}
        for path, share in paths.items():
            state = request.grammar.start()
            for token in path:
                state.accept(token)
            with torch.no_grad():
                logits = model(torch.tensor([[*request.prompt, *path]])).logits[0, -1]
            shares = Sampler(request.sampling, 0, [], state).distribution(logits)
            for token in shares.nonzero().flatten().tolist():
                if token == tokenizer.eos_id:
                    found[tokenizer.decode(list(path))] += share * float(shares[token])
                else:
                    longer[(*path, token)] = share * float(shares[token])
        paths = longer
    return found


@pytest.mark.slow
def test_a_grammar_that_becomes_too_expensive_ends_its_own_sequence_only(model, tokenizer, grammar) -> None:
    text = answer_grammar([regex_rules("[ab]*a[ab]{60}c")], tokenizer, False)
    costly = Grammar(text, VOCAB, LLParserLimits(max_lexer_states=30))
    whole, broken = tokens_of(model, requests_of(tokenizer, Sampling(), [grammar, costly]))
    assert broken[-1].end == "error"
    assert 5 < len(broken) < 80
    assert whole[-1].end == "stop"
    check(tokenizer.decode([token.id for token in whole[:-1]]), NUMBERS)
