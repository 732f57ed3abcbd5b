"""Fields that ask for structured answers: `response_format`, `structured_outputs`, `tool_choice`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from seektune.data.chat_format.message import shown
from seektune.generate.answer_grammar import ANY_OBJECT, AnswerRules, choice_rules, json_rules, regex_rules
from seektune.io.strict_json import parse_json
from seektune.serve.field_types import MAX_ITEMS, RequestModel

FORMATS = ("response_format", "structured_outputs", "regex")
"""Fields of which a request may have one."""


class JsonSchemaFormat(RequestModel):
    """`response_format.json_schema`; answers follow the schema whether it is `strict` or not."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    content: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(RequestModel):
    """`response_format`, OpenAI's field."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_the_schema_that_it_names(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("type: json_schema and the field json_schema belong together")
        return self

    def described(self) -> Mapping[str, Any] | None:
        """What the prompt says about the format, as DeepSeek's encoder writes it."""
        if self.type == "text":
            return None
        return {"type": "json_object"} if self.json_schema is None else self.json_schema.content

    def rules(self) -> AnswerRules:
        """The grammar's rules, for any type but text.

        Raises:
            ValueError: the schema is nested too deeply, or would take too much work.
        """
        return json_rules(ANY_OBJECT if self.json_schema is None else self.json_schema.content)


class StructuredOutputs(RequestModel):
    """`structured_outputs`, vLLM's field; unlike `response_format`, the prompt does not describe it."""

    content: Annotated[Any, Field(alias="json")] = None
    """A JSON schema, as an object or as text."""
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _asks_for_one(self) -> Self:
        asked = [self.content is not None, bool(self.json_object), self.regex is not None, self.choice is not None]
        if sum(asked) != 1:
            raise ValueError("give one of json, json_object, regex and choice")
        return self

    def rules(self) -> AnswerRules:
        """The grammar's rules.

        Raises:
            ValueError: what is asked for is not a schema, no regular expression or no list of texts.
        """
        if self.regex is not None:
            return regex_rules(self.regex)
        if self.choice is not None:
            return choice_rules(self.choice)
        if self.json_object:
            return json_rules(ANY_OBJECT)
        schema = parse_json(self.content) if isinstance(self.content, str) else self.content
        if not isinstance(schema, dict):
            raise ValueError(f"json must be a schema, not {shown(schema)}")
        return json_rules(schema)


class NamedFunction(RequestModel):
    """The function of `tool_choice`."""

    name: str


class NamedTool(RequestModel):
    """`tool_choice` that names a tool."""

    type: Literal["function"]
    function: NamedFunction


def _form(value: Any) -> str | None:
    """The form of a `tool_choice`; a tag of the union below."""
    return "<text>" if isinstance(value, str) else "<named>" if isinstance(value, dict | NamedTool) else None


ToolChoice: TypeAlias = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("<text>")] | Annotated[NamedTool, Tag("<named>")],
    Discriminator(
        _form, custom_error_type="form", custom_error_message="must be auto, none, required or a function's name"
    ),
]
