"""Generates the Markdown reference of recipe keys from the section classes."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from seektune.recipe.load import schema
from seektune.recipe.recipe import Recipe
from seektune.section import one_of, sections_of

_LIMITS = {
    "exclusiveMinimum": "> {}",
    "minimum": "≥ {}",
    "exclusiveMaximum": "< {}",
    "maximum": "≤ {}",
}
"""How bounds of the JSON schema are displayed."""
_TYPES = {
    "string": "string",
    "integer": "integer",
    "number": "number",
    "boolean": "`true`, `false`",
    "null": "`null`",
}


def reference() -> str:
    """A table for each section of a recipe: key, values, default, meaning."""
    definitions = schema()["$defs"]
    lines = [*_table("A run", "", Recipe, schema()), *_sections(Recipe, "", definitions)]
    return "\n".join(lines).rstrip() + "\n"


def _sections(model: type[BaseModel], prefix: str, definitions: dict[str, Any]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        choice = one_of(field)
        for chosen, section in sections_of(field).items():
            heading = f"`{prefix}{name}`" + (f" with `{choice.key}: {chosen}`" if choice is not None else "")
            yield from _table(heading, f"{prefix}{name}.", section, definitions[section.__name__])
            yield from _sections(section, f"{prefix}{name}.", definitions)


def _table(heading: str, prefix: str, model: type[BaseModel], described: dict[str, Any]) -> list[str]:
    """A heading, and a row for each key of a section that is not itself a section."""
    plain = [(name, field) for name, field in model.model_fields.items() if not sections_of(field)]
    rows = [_row(prefix + name, field, described["properties"][name]) for name, field in plain]
    head = [f"## {heading}", "", _sentence(described.get("description", "")), ""]
    return [*head, "| key | values | default | meaning |", "|---|---|---|---|", *rows, ""]


def _row(key: str, field: FieldInfo, described: dict[str, Any]) -> str:
    # the schema has no default where a function makes it
    made = None if field.default_factory is None else field.get_default(call_default_factory=True)
    default = f"`{json.dumps(described.get('default', made), ensure_ascii=False)}`"
    if field.is_required():
        default = "**required**"
    return f"| `{key}` | {_values(described)} | {default} | {_sentence(described.get('description', ''))} |"


def _values(described: dict[str, Any]) -> str:
    """The values that a key accepts, as a short phrase."""
    if "anyOf" in described:
        return ", ".join(_values(each) for each in described["anyOf"])
    if "enum" in described or "const" in described:
        return ", ".join(f"`{value}`" for value in described.get("enum", [described.get("const")]))
    if "prefixItems" in described:
        return f"[{', '.join(_values(each) for each in described['prefixItems'])}]"
    if described["type"] == "array":
        return f"list of {_values(described['items'])}"
    if described["type"] == "object":
        return f"{{name: {_values(described['additionalProperties'])}}}"
    limits = [form.format(described[limit]) for limit, form in _LIMITS.items() if limit in described]
    word = "path" if described.get("format") == "path" else _TYPES[described["type"]]
    return " ".join([word, " and ".join(limits)]).strip()


def _sentence(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
