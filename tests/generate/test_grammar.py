"""Grammars of answers: every text that follows one is valid, and hostile ones are refused in one line and in time."""

import json
import pickle
import random
import re
import time
from typing import Any

import jsonschema
import pytest
import torch
from llguidance import LLParserLimits

from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate.answer_grammar import AnswerRules, answer_grammar, choice_rules, json_rules, regex_rules
from seektune.generate.grammar import Grammar, compile_grammar

from .grammars import CPU, VOCAB, random_text
from .json_schemas import REAL, made_document, made_schema


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(VOCAB)


def compiled(rules: AnswerRules, tokenizer: Tokenizer, thinking: bool = False) -> Grammar:
    return compile_grammar(answer_grammar([rules], tokenizer, thinking), VOCAB)


def accepts(grammar: Grammar, ids: list[int], tokenizer: Tokenizer) -> bool:
    """Whether ids and EOS follow a grammar."""
    state = grammar.start()
    for token in [*ids, tokenizer.eos_id]:
        if not state.allowed(CPU)[token]:
            return False
        state.accept(token)
    return not state.failed


def check(text: str, schema: Any) -> None:
    """Raise unless a text is JSON that is valid against a schema."""
    validator = jsonschema.Draft202012Validator
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(text))


@pytest.mark.slow
def test_random_texts_are_valid_against_their_schemas(tokenizer: Tokenizer) -> None:
    generator = random.Random(5)
    schemas = [*REAL, *(made_document(generator) for _ in range(40)), *(made_schema(generator) for _ in range(60))]
    texts = [random_text(compiled(json_rules(schema), tokenizer), tokenizer, i) for i, schema in enumerate(schemas)]
    complete = [(text, schema) for text, schema in zip(texts, schemas, strict=True) if text is not None]
    assert len(complete) >= 100
    for text, schema in complete:
        check(text, schema)


@pytest.mark.parametrize(
    "text", ['{"a":1,"b":[true]}', '{"a": 1, "b": [true]}', '{\n  "a": 1,\n\t"b": [\n    true\n  ]\n}']
)
def test_json_may_be_laid_out_as_usual(tokenizer: Tokenizer, text: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    grammar = compiled(json_rules(schema), tokenizer)
    assert accepts(grammar, tokenizer.encode(text), tokenizer)
    for wrong in (f" {text}", f"{text}\n", text.replace(":", ":\n\n"), text.replace("1", "1.5"), text[:-1]):
        assert not accepts(grammar, tokenizer.encode(wrong), tokenizer)


@pytest.mark.parametrize(
    ("pattern", "fits", "others"),
    [
        (r"[a-z]{2}/\d+", ["ab/0", "zz/123"], ["ab", "ab/x", "ab/1 ", " ab/1"]),
        ("a/ | /b", ["a/ ", " /b"], ["a/ | /b", "a"]),
        ("^yes$|^no$", ["yes", "no"], ["yesno", ""]),
        ("/", ["/"], ["//"]),
        ("x\ny|\"'\\\\", ["x\ny", "\"'\\"], ["x y"]),
        ("[一-龥🐋]+", ["你好🐋"], ["a"]),
        ("(?i)ok", ["OK", "ok"], ["o"]),
    ],
)
def test_regular_expressions_match_whole_texts(
    tokenizer: Tokenizer, pattern: str, fits: list[str], others: list[str]
) -> None:
    grammar = compiled(regex_rules(pattern), tokenizer)
    assert all(accepts(grammar, tokenizer.encode(text), tokenizer) for text in fits)
    assert not any(accepts(grammar, tokenizer.encode(text), tokenizer) for text in others)


def test_choices(tokenizer: Tokenizer) -> None:
    choices = ["yes", "yes or no", 'a"b\\', "你\n🐋", "<think>"]
    grammar = compiled(choice_rules(choices), tokenizer)
    assert all(accepts(grammar, tokenizer.encode(text), tokenizer) for text in choices)
    assert not any(accepts(grammar, tokenizer.encode(text), tokenizer) for text in ("", "ye", "yes or", "yesyes"))
    assert {random_text(grammar, tokenizer, seed) for seed in range(10)} <= set(choices)


def test_an_answer_is_one_of_several(tokenizer: Tokenizer) -> None:
    answers = [json_rules({"type": "integer"}), AnswerRules('name " "', ["name: /[a-z]+/"])]
    grammar = compile_grammar(answer_grammar(answers, tokenizer, False), VOCAB)
    assert all(accepts(grammar, tokenizer.encode(text), tokenizer) for text in ("12", "ab "))
    assert not accepts(grammar, tokenizer.encode("12 "), tokenizer)


def test_reasoning_precedes_the_answer(tokenizer: Tokenizer) -> None:
    grammar = compiled(regex_rules("yes"), tokenizer, thinking=True)
    end = tokenizer.control_id("</think>")
    thought = [*tokenizer.encode("yes. 你 {"), tokenizer.control_id("<｜User｜>")]
    answer = tokenizer.encode("yes")
    assert accepts(grammar, [*thought, end, *answer], tokenizer)
    assert accepts(grammar, [end, *answer], tokenizer)
    assert not accepts(grammar, [*thought, end, end, *answer], tokenizer)
    assert not accepts(grammar, thought, tokenizer)  # EOS may not end the reasoning
    assert not accepts(grammar, answer, tokenizer)


def test_control_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    grammar = compiled(regex_rules("(?s:.*)"), tokenizer)
    allowed = grammar.start().allowed(CPU)
    control = torch.tensor(sorted(tokenizer.control_ids - {tokenizer.eos_id}))
    assert not allowed[control].any()
    assert allowed.sum() > 300
    assert accepts(grammar, tokenizer.encode("<think>｜DSML｜"), tokenizer)


def test_ids_beyond_the_tokenizer_are_never_allowed() -> None:
    tokenizer = load_tokenizer(VOCAB)
    state = compile_grammar("start: /(?s:.*)/", VOCAB).start()
    assert state.allowed(CPU).shape == (VOCAB,)
    assert state.allowed(CPU)[tokenizer.eos_id]


def test_states_of_a_grammar_are_independent(tokenizer: Tokenizer) -> None:
    grammar = compiled(regex_rules("ab|cd"), tokenizer)
    first = grammar.start()
    second = grammar.start()
    first.accept(tokenizer.encode("a")[0])
    assert first.allowed(CPU).sum() == 1
    assert second.allowed(CPU).sum() > 1


def test_a_grammar_is_compiled_once_and_may_be_sent_to_other_processes(tokenizer: Tokenizer) -> None:
    grammar = compiled(regex_rules("a{3}"), tokenizer)
    assert compiled(regex_rules("a{3}"), tokenizer) is grammar
    sent = pickle.dumps(grammar)
    compile_grammar.cache_clear()
    assert accepts(pickle.loads(sent), tokenizer.encode("aaa"), tokenizer)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def chain(links: int) -> dict[str, Any]:
    definitions = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(links)}
    return {"$defs": {**definitions, f"d{links}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def doubled(links: int) -> dict[str, Any]:
    definitions = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(links)}
    return {"$defs": {**definitions, f"d{links}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def unions(count: int) -> dict[str, Any]:
    pairs = [[{"properties": {f"{name}{i}": {"type": kind}}} for name, kind in PAIR] for i in range(count)]
    return {"allOf": [{"anyOf": pair} for pair in pairs]}


PAIR = (("a", "string"), ("b", "integer"))
ALL: dict[str, Any] = {"$ref": "#"}
HOSTILE: list[tuple[dict[str, Any] | str, str | None]] = [
    ({"enum": ["x" * 2**20]}, "the grammar has 1048"),
    (nested(70), "the schema is nested more than 64 levels deep"),
    (nested(900), "the schema is nested more than 64 levels deep"),
    (nested(60), None),
    (chain(1500), None),
    (doubled(40), None),
    (unions(20), "schema too large"),
    ({"$ref": "#"}, "no text matches it, or it is too complex"),
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no text matches it"),
    ({"type": "object", "properties": {"a": ALL}, "required": ["a"]}, None),
    ({"type": "object", "properties": {f"p{i}": {} for i in range(6000)}}, "the grammar has "),
    ({"type": "string", "maxLength": 10**9}, None),
    ({"type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6}}, None),
    ({"type": "integer", "multipleOf": 123456789}, "multipleOf: the least common multiple of all is above 100000"),
    ({"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]}, "multipleOf: the least common"),
    ({"type": "number", "multipleOf": 1e300}, "multipleOf: the least common"),
    ({"type": "number", "multipleOf": 0.00012345678}, "multipleOf: the least common"),
    ({"type": "integer", "minimum": -(10**300)}, "Failed to generate regex for integer range"),
    ({"type": "string", "pattern": "^(((a{1,100}){1,100}){1,100}){1,100}$"}, None),
    ({"type": "string", "pattern": "^(.*a.{300})*$"}, None),
    ({"type": "string", "pattern": "\ud800"}, "unexpected end of hex escape"),
    ({"x-guidance": {"lenient": True}, "not": {}}, 'no grammar can follow "not"'),
    ({"type": "strin"}, "Invalid type: strin"),
    ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength (5) is greater than maxLength (2)"),
    ("(" * 300 + "a" + ")" * 300, "exceed the maximum number of nested parentheses/brackets (250)"),
    ("a{1000000}", "a regular expression repeats something more than 10000 times"),
    ({"patternProperties": {"^a{2,50000}$": {}}}, "a regular expression repeats something more than 10000 times"),
    ("(((((a{1,100}){1,100}){1,100}){1,100}){1,100})", None),
    ("|".join(f"w{i}.*q{i}" for i in range(3000)), None),
    ("(x+x+)+y", None),
    ("a" * 200_000, "the grammar has 2000"),
    ("[", "unclosed character class"),
    ("a/\n%json x", None),
    ("[^\\x00-\\U0010FFFF]", "no text matches it"),
]


@pytest.mark.parametrize(("asked", "complaint"), HOSTILE, ids=lambda value: str(value)[:40])
def test_hostile_grammars_are_refused_or_followed_in_time(
    tokenizer: Tokenizer, asked: dict[str, Any] | str, complaint: str | None
) -> None:
    """Bounds in processor time: a few seconds, where a grammar that is worked out whole takes hours."""

    def follow() -> None:
        rules = regex_rules(asked) if isinstance(asked, str) else json_rules(asked)
        state = compiled(rules, tokenizer).start()
        for _ in range(20):
            state.accept(int(state.allowed(CPU).nonzero()[-1]))

    begin = time.process_time()
    if complaint is None:
        follow()
    else:
        with pytest.raises(ValueError, match=re.escape(complaint)) as refused:
            follow()
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 300
    assert time.process_time() - begin < 5


def test_sequences_do_not_use_up_each_other_s_automaton(tokenizer: Tokenizer) -> None:
    """Copies of a compiled grammar share an automaton; one that is full is begun anew."""
    text = answer_grammar([regex_rules("([ab]*a[ab]{40}c)*")], tokenizer, False)
    grammar = Grammar(text, VOCAB, LLParserLimits(max_lexer_states=600))
    first = grammar.matcher()
    for seed in range(12):
        generator = random.Random(seed)
        state = grammar.start()
        for _ in range(60):
            state.accept(generator.choice(state.allowed(CPU).nonzero().flatten().tolist()))
            assert not state.failed
    while not first.is_error():  # the first automaton is full
        first.consume_token(tokenizer.encode(generator.choice("ab"))[0])
        first.compute_bitmask()


def test_a_grammar_that_alone_is_too_expensive_fails(tokenizer: Tokenizer) -> None:
    text = answer_grammar([regex_rules("([ab]*a[ab]{40}c)*")], tokenizer, False)
    state = Grammar(text, VOCAB, LLParserLimits(max_lexer_states=30)).start()
    generator = random.Random(0)
    for _ in range(100):
        state.accept(generator.choice(state.allowed(CPU).nonzero().flatten().tolist()))
    assert state.failed
    assert state.allowed(CPU).all()
