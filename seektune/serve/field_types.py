"""Types of fields of request bodies: validation ends at the first mistake of a list."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from seektune.data.chat_format.message import shown
from seektune.serve.no_effect import asks_for_nothing, refusal

MAX_STOPS = 16
MAX_ITEMS = 2**16
"""Of a list of prompts, messages or tools; what the server's own limits allow is less."""
UNSUPPORTED = "unsupported_field"
"""Type of the error for a field that is not supported; its context has the field's name."""


class RequestModel(BaseModel):
    """Base of request bodies; null is the same as leaving a field out."""

    model_config = ConfigDict(protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        known = {name: value for name, value in values.items() if name in fields and value is not None}
        for name, value in values.items():
            if name not in fields and not asks_for_nothing(name, value, values):
                raise PydanticCustomError(UNSUPPORTED, "{reason}", {"field": _name(name), "reason": refusal(name)})
        return known


def _name(field: str) -> str:
    return field if field.isidentifier() and len(field) < 40 else shown(field)


def _form(value: Any) -> str | None:
    """The form of a prompt or of stop strings, by its first item; a tag of the union below.

    Tags have angle brackets, unlike names of fields, so that errors can leave them out.
    """
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    kind = type(value[0]) if value else str
    return {str: "<texts>", int: "<ids>", list: "<lists of ids>"}.get(kind)


def by_type() -> Discriminator:
    """Chooses a member of a union by the field `type`; its tag is the type in angle brackets."""
    return Discriminator(_type_tag)


def _type_tag(value: Any) -> str:
    return f"<{value['type'] if isinstance(value, dict) else value.type}>"


def known_types(*types: str, default: str | None = None) -> Callable[[Any], Any]:
    """A validator that refuses an object by its `type` unless it is one of `types`; `default` if it has none."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise PydanticCustomError("form", "must be an object with a type")
        kind = value.get("type") or default
        if kind not in types:
            reason = f"type {shown(kind)} is not supported; supported are {', '.join(types)}"
            raise PydanticCustomError(UNSUPPORTED, "{reason}", {"reason": reason})
        return {**value, "type": kind}

    return check


Text: TypeAlias = Annotated[str, Tag("<text>")]
Ids: TypeAlias = Annotated[list[int], Field(fail_fast=True)]
Prompt: TypeAlias = Annotated[
    Text
    | Annotated[list[str], Field(max_length=MAX_ITEMS, fail_fast=True), Tag("<texts>")]
    | Annotated[list[int], Field(fail_fast=True), Tag("<ids>")]
    | Annotated[list[Ids], Field(max_length=MAX_ITEMS, fail_fast=True), Tag("<lists of ids>")],
    Discriminator(
        _form, custom_error_type="form", custom_error_message="must be a text, a list of texts, ids, or lists of ids"
    ),
]
Stop: TypeAlias = Annotated[
    Text | Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True), Tag("<texts>")],
    Discriminator(_form, custom_error_type="form", custom_error_message="must be a text or a list of texts"),
]
Objects: TypeAlias = Annotated[list[dict[Any, Any]], Field(max_length=MAX_ITEMS, fail_fast=True)]
Effort: TypeAlias = Literal["minimal", "low", "medium", "high", "xhigh", "max", "ultra"]
EffortOrNone: TypeAlias = Literal["none", Effort]
"""With the word for no reasoning at all."""
EFFORTS = {
    "minimal": "low",
    "low": "low",
    "medium": "high",
    "high": "high",
    "xhigh": "high",
    "max": "max",
    "ultra": "max",
}
"""The tiers of DeepSeek's API, by the efforts that clients may ask for."""
