"""Stands in for pydantic where it is not installed: values are taken as they are given, nothing is validated."""

import json
from collections.abc import Callable, Iterator
from inspect import get_annotations
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

PositiveInt = NonNegativeInt = int
PositiveFloat = NonNegativeFloat = float
ConfigDict = dict


def __getattr__(name: str) -> Any:
    """Every other name is a class that takes anything, such as validators in annotations."""
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything


class Anything:
    """Takes any arguments and does nothing."""

    def __init__(self, *_: Any, **__: Any):
        pass


class ValidationError(ValueError):
    """Never raised here."""


def Field(default: Any = ..., *, default_factory: Callable[[], Any] | None = None, **_: Any) -> Any:  # noqa: N802
    """A field with a default; its bounds are not checked."""
    return FieldInfo(default, default_factory)


def _unchanged(*_: Any, **__: Any) -> Callable[[Any], Any]:
    return lambda method: method


model_validator = field_validator = _unchanged


class BaseModel:
    """Fields by annotation; further values are kept as attributes."""

    model_fields: ClassVar[dict[str, FieldInfo]] = {}

    def __init_subclass__(cls, **_: Any):
        own = [name for name in get_annotations(cls) if not name.startswith("model_")]
        fields = {name: _field(cls.__dict__.get(name, ...)) for name in own}
        cls.model_fields = {**cls.model_fields, **fields}

    def __init__(self, **values: Any):
        hints = get_type_hints(type(self))
        for name, field in self.model_fields.items():
            value = _convert(hints[name], values[name]) if name in values else field.get_default()
            if value is ...:
                raise ValidationError(f"{name} is missing")
            setattr(self, name, value)
        for name in values.keys() - self.model_fields.keys():
            setattr(self, name, values[name])
        self.model_fields_set = set(values)
        self.model_post_init(None)

    def model_post_init(self, _context: Any) -> None:
        """For subclasses."""

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((name, value) for name, value in vars(self).items() if name != "model_fields_set")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and dict(self) == dict(other)  # type: ignore[call-overload]

    def __hash__(self) -> int:
        return hash(tuple(map(repr, self)))

    @classmethod
    def model_validate(cls, values: Any, **_: Any) -> Any:
        """An object of these values."""
        return values if isinstance(values, cls) else cls(**values)

    @classmethod
    def model_validate_json(cls, text: str, **_: Any) -> Any:
        """An object of a JSON text's values."""
        return cls(**json.loads(text))

    @classmethod
    def model_construct(cls, **values: Any) -> Any:
        """An object of these values."""
        return cls(**values)

    def model_copy(self, *, update: dict[str, Any] | None = None) -> Any:
        """A copy with changes."""
        return type(self)(**{**dict(self), **(update or {})})

    def model_dump(self, include: Any = None, exclude_unset: bool = False, **_: Any) -> dict[str, Any]:
        """The values by name."""
        names = (name for name, _ in self if include is None or name in include)
        return {n: _plain(getattr(self, n)) for n in names if not exclude_unset or n in self.model_fields_set}


def _field(default: Any) -> FieldInfo:
    return default if isinstance(default, FieldInfo) else FieldInfo(default)


def _convert(hint: Any, value: Any) -> Any:
    """Nested models and tuples as their annotation says."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind(**value)
        if isinstance(value, list) and get_origin(kind) is tuple:
            return tuple(value)
    return value


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value
