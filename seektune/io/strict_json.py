"""JSON as the standard defines it: Python's parser also takes NaN and Infinity."""

import json
from typing import Any, NoReturn


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or holds a number of more digits than Python reads.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_nested_deeper(value: Any, most: int) -> bool:
    """Whether there are objects and arrays inside of one another, more than `most` of them."""
    level = [value]
    for _ in range(most + 1):
        level = [child for each in level if isinstance(each, dict | list) for child in _children(each)]
    return bool(level)


def _children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")
