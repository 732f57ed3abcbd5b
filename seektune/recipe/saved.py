"""Fills in the keys that the recipe of an earlier run lacks, as they were added after it was saved."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from seektune.recipe.recipe import Recipe
from seektune.section import one_of, sections_of


def with_defaults(saved: Mapping[str, Any], section: type[BaseModel] = Recipe) -> dict[str, Any]:
    """A saved section as JSON has it, and the defaults of the keys that it lacks, in its sections too.

    A run from before a key was added trained as the key's default does. Values are not checked.
    """
    fields = section.model_fields
    absent = {name: field for name, field in fields.items() if name not in saved and not field.is_required()}
    defaults = {
        name: to_jsonable_python(field.get_default(call_default_factory=True)) for name, field in absent.items()
    }
    return {**saved, **defaults, **{name: _filled(saved[name], fields[name]) for name in fields if name in saved}}


def _filled(value: Any, field: FieldInfo) -> Any:
    if isinstance(value, list):
        return [_filled(each, field) for each in value]
    section = _section_of(value, field) if isinstance(value, dict) else None
    return value if section is None else with_defaults(value, section)


def _section_of(value: Mapping[str, Any], field: FieldInfo) -> type[BaseModel] | None:
    """The section that a value is of; None if it is of none."""
    sections = sections_of(field)
    choice = one_of(field)
    first = next(iter(sections), "")
    return sections.get(first if choice is None else str(value.get(choice.key, first)))
