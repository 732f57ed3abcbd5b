"""The base class of recipe sections (typed, immutable, strict about unknown keys), and unions of sections."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from seektune.paths import expand_path, user_path

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A number above zero."""
PathString = Annotated[str, AfterValidator(expand_path)]
"""A path as a user writes it, or a Hub id."""
PathValue = Annotated[Path, AfterValidator(lambda path: user_path(str(path)))]
"""A path as a user writes it."""


class Section(BaseModel):
    """Base of every recipe section; each is defined in the package that uses it, and `recipe` composes them."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


LIST = "[]"
"""What pydantic's locations hold before the index of a section in a list of sections."""


@dataclass(frozen=True, eq=False)
class OneOf:
    """Annotates a field that holds one of several sections, chosen by `key`; the first is the default."""

    key: str
    sections: Mapping[str, type[Section]]
    several: bool = False
    """Whether the field may also hold a list of such sections."""
    least: int = 1
    """Minimum length of the list."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(section) for name, section in self.sections.items()}
        one = core_schema.tagged_union_schema(choices, self._name_of)
        if not self.several:
            return one
        sections = core_schema.list_schema(one, min_length=self.least)
        return core_schema.tagged_union_schema({**choices, LIST: sections}, self._name_or_list)

    def _name_or_list(self, value: Any) -> str:
        return LIST if isinstance(value, list) else self._name_of(value)

    def _name_of(self, value: Any) -> str:
        first = next(iter(self.sections))
        if isinstance(value, Section):
            return next((name for name, section in self.sections.items() if isinstance(value, section)), first)
        # a value that is not a section gets the first section's error
        return str(value.get(self.key, first)) if isinstance(value, dict) else first


def one_of(field: FieldInfo) -> OneOf | None:
    """The `OneOf` annotation of a field, or None."""
    return next((each for each in field.metadata if isinstance(each, OneOf)), None)


def sections_of(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """The sections that a field accepts, by name; "" names the only one, and a plain key has none."""
    if (choice := one_of(field)) is not None:
        return dict(choice.sections)
    kind = item_section(field) or field.annotation
    return {"": kind} if isinstance(kind, type) and issubclass(kind, BaseModel) else {}


def item_section(field: FieldInfo) -> type[BaseModel] | None:
    """The section of each item of a field that holds a list or tuple of sections, or None."""
    kinds = [field.annotation, *get_args(field.annotation)]
    items = [get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, tuple)]
    plain = [get_args(item)[0] if get_origin(item) is Annotated else item for item in items]
    return next((item for item in plain if isinstance(item, type) and issubclass(item, BaseModel)), None)
