"""Grammars of structured answers, in llguidance's variant of Lark: JSON, regular expressions, choices.

Syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any

from llguidance import regex_to_lark

from seektune.data.chat_format.tokens import THINK_END
from seektune.data.tokenizer import Tokenizer
from seektune.io.text import check_unicode

MOST_CHARACTERS = 2**16
"""Of a grammar's text."""
MOST_LEVELS = 64
"""Nesting of a JSON schema."""
LARGEST_MULTIPLE = 100_000
"""Of all `multipleOf` of a JSON schema: an automaton counts up to it."""
MOST_REPEATS = 10_000
"""Of a part of a regular expression."""
COUNTS = re.compile(r"\{ *(?:\d+ *, *)?(\d{1,100})")
WHITESPACE = r" |\n[ \t]{0,32}"
"""Between the parts of a JSON text: what common writers put there, and never without end."""
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class AnswerRules:
    """What an answer may be."""

    body: str
    """An expression."""
    rules: Sequence[str] = ()
    """Definitions of the names in it."""


def json_rules(schema: Mapping[str, Any]) -> AnswerRules:
    """JSON that is valid against a schema.

    Raises:
        ValueError: the schema is nested too deeply, or would take too much work.
    """
    return AnswerRules(json_rule(schema))


def json_rule(schema: Mapping[str, Any]) -> str:
    """An expression for JSON that is valid against a schema.

    Raises:
        ValueError: the schema is nested too deeply, or would take too much work.
    """
    _check_work(schema)
    # the last of equal keys counts, so that a schema cannot set llguidance's options itself
    return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': WHITESPACE}})}"


def regex_rules(pattern: str) -> AnswerRules:
    """A text that matches a regular expression as a whole.

    Raises:
        ValueError: the expression is empty, is not Unicode, or would take too much work.
    """
    check_unicode(pattern)
    _check_repeats(pattern)
    if not pattern:
        raise ValueError("the regular expression is empty")
    return AnswerRules(f"/{regex_to_lark(pattern)}/")


def choice_rules(choices: Sequence[str]) -> AnswerRules:
    """One of several texts.

    Raises:
        ValueError: there are none, or one is empty or is not Unicode.
    """
    check_unicode("".join(choices))
    if not choices or not all(choices):
        raise ValueError("choices must be texts that are not empty, at least one")
    return AnswerRules(" | ".join(map(literal, choices)))


def answer_grammar(answers: Sequence[AnswerRules], tokenizer: Tokenizer, thinking: bool) -> str:
    """The grammar of an answer that is one of several; with `thinking`, any reasoning precedes it.

    Reasoning may hold any token but EOS, so that an answer always follows.

    Raises:
        ValueError: the vocabulary lacks the control token after reasoning.
    """
    rules = [f"answer: {' | '.join(f'({answer.body})' for answer in answers)}"]
    rules += [rule for answer in answers for rule in answer.rules]
    if not thinking:
        return "\n".join(["start: answer", *rules])
    end = tokenizer.control_id(THINK_END)
    return "\n".join([f"start: <[^{tokenizer.eos_id},{end}]>* <[{end}]> answer", *rules])


def literal(text: str) -> str:
    """A text as an expression."""
    return json.dumps(text, ensure_ascii=False)


def _check_work(schema: Mapping[str, Any]) -> None:
    """Raise ValueError if a schema would take llguidance too much work, which its own limits do not count."""
    objects = [each for each in _parts(schema) if isinstance(each, dict)]
    common = math.lcm(*(_digits(each["multipleOf"]) for each in objects if "multipleOf" in each))
    if common > LARGEST_MULTIPLE:
        raise ValueError(f"multipleOf: the least common multiple of all is above {LARGEST_MULTIPLE}")
    for each in objects:
        for pattern in (each.get("pattern"), *each):
            _check_repeats(str(pattern))


def _check_repeats(pattern: str) -> None:
    """Raise ValueError if a regular expression counts too far."""
    if any(int(count) > MOST_REPEATS for count in COUNTS.findall(pattern)):
        raise ValueError(f"a regular expression repeats something more than {MOST_REPEATS} times")


def _parts(schema: Mapping[str, Any]) -> Iterator[object]:
    """All values in a schema, level by level."""
    level: list[object] = [schema]
    for _ in range(MOST_LEVELS):
        yield from level
        nested = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = list(chain.from_iterable(nested))
        if not level:
            return
    raise ValueError(f"the schema is nested more than {MOST_LEVELS} levels deep")


def _digits(multiple: object) -> int:
    """A multiple without its decimal point; 1 if it is not a number."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | float):
        return 1
    number = Decimal(str(multiple)).normalize()
    return max(1, int(number.scaleb(-min(int(number.as_tuple().exponent), 0))))
