"""The grammar of tool calls in DeepSeek-V4's markup (`data.chat_format.tool_calls`), with arguments that are valid
against the tools' schemas.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from seektune.data.chat_format.encodings import CallTags
from seektune.data.chat_format.message import shown
from seektune.data.chat_format.tokens import DSML
from seektune.data.tokenizer import Tokenizer
from seektune.generate.answer_grammar import AnswerRules, literal
from seektune.generate.parameter_grammar import ANNOTATIONS, DEFINITIONS, END, WorkBudget, parameter_values

OF_PARAMETERS = frozenset({"type", "properties", "required", "additionalProperties", *DEFINITIONS, *ANNOTATIONS})
"""Keywords of a tool's parameters that the grammar follows; it writes named properties only."""
EMPTY_LINE = literal("\n")
"""In place of the parameters of a call without any."""


class CallMarkup:
    """The tags of tool calls, as expressions."""

    def __init__(self, tags: CallTags, tokenizer: Tokenizer):
        """Raises ValueError if the vocabulary lacks the markup's token."""
        self._tags = tags
        self._token = f"<[{tokenizer.control_id(DSML)}]>"
        self._begin = f"{literal('<')} {self._token}"

    def calls(self, call: str) -> str:
        """The block of all calls, and the empty line before it."""
        first = literal("\n\n<")
        begin = literal(f"{self._tags.calls}>\n")
        end = literal(f"{self._tags.calls}>")
        return f"{first} {self._token} {begin} {call} {END} {self._token} {end}"

    def call(self, name: str, parameters: str) -> str:
        """One call."""
        begin = literal(f'{self._tags.invoke} name="{name}">\n')
        end = literal(f"{self._tags.invoke}>\n")
        return f"{self._begin} {begin} {parameters} {END} {self._token} {end}"

    def parameter(self, name: str, values: str) -> str:
        """One parameter; its values end with `END`."""
        begin = literal(f'{self._tags.parameter} name="{name}" string="')
        end = literal(f"{self._tags.parameter}>\n")
        return f"{self._begin} {begin} ({values}) {self._token} {end}"


def call_rules(functions: Sequence[Mapping[str, Any]], markup: CallMarkup, several: bool) -> AnswerRules:
    """One call of one of some functions (of OpenAI's tools); with `several`, one or more.

    Raises:
        ValueError: a schema holds what the grammar cannot follow, which the message names.
    """
    budget = WorkBudget()
    rules: list[str] = []
    for i, function in enumerate(functions):
        try:
            rules += _function_rules(f"function_{i}", function, markup, budget)
        except ValueError as error:
            raise ValueError(f"the parameters of {shown(function['name'])}: {error}") from None
    call = " | ".join(f"function_{i}" for i in range(len(functions)))
    return AnswerRules(markup.calls(f"({call}){'+' if several else ''}"), rules)


def _function_rules(rule: str, function: Mapping[str, Any], markup: CallMarkup, budget: WorkBudget) -> Iterator[str]:
    """The rules of one function; the first has the name `rule`."""
    schema = function.get("parameters", {})
    schema = {} if schema is None else schema
    _check_parameters(schema)
    required = schema.get("required", [])
    properties = {**schema.get("properties", {})}
    properties |= {name: True for name in required if name not in properties}
    names = {name: f"{rule}_{i}" for i, name in enumerate(properties)}
    yield f"{rule}: {markup.call(_quotable(function['name']), _parameters(names, required))}"
    definitions = {key: schema[key] for key in DEFINITIONS if key in schema}
    for name, parameter in names.items():
        values = parameter_values(properties[name], definitions, budget)
        choices = " | ".join(f"{parameter}_{i}" for i in range(len(values)))
        yield f"{parameter}: {markup.parameter(_quotable(name), choices)}"
        yield from (f"{parameter}_{i}: {value}" for i, value in enumerate(values))


def _parameters(rules: Mapping[str, str], required: Sequence[str]) -> str:
    """The parameters in the order of the schema; `rules` are those of each."""
    written = " ".join(rule if name in required else f"{rule}?" for name, rule in rules.items())
    if not written:
        return EMPTY_LINE
    return written if required else f"({EMPTY_LINE} | {written})"


def _check_parameters(schema: object) -> None:
    """Raises ValueError, naming what the grammar cannot follow."""
    if not isinstance(schema, Mapping):
        raise ValueError(f"{shown(schema)} is not a schema of an object")
    unknown = sorted(map(str, schema.keys() - OF_PARAMETERS))
    if unknown:
        raise ValueError(f"{shown(unknown[0])} beside the properties is not supported")
    if schema.get("type", "object") != "object":
        raise ValueError(f"type must be object, not {shown(schema['type'])}")
    if not isinstance(schema.get("properties", {}), Mapping):
        raise ValueError("properties must be an object")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise ValueError("required must be a list of names")


def _quotable(name: object) -> str:
    """A name that the markup can quote."""
    if not isinstance(name, str) or '"' in name or "\n" in name:
        raise ValueError(f"the name {shown(name)} cannot be written in a tool call")
    return name
