"""Files that hold one JSON object: read with errors that name the file, and written whole."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seektune.io.atomic import replacing, write_all
from seektune.io.regular_file import open_named

MOST_STEPS = 2**48
"""More steps than any run has."""
MOST_BYTES = 2**26
"""More bytes than any JSON file of a checkpoint or run has; the largest index of a release has 13 MB."""
MOST_CONFIG_BYTES = 2**22
"""More bytes than config.json or adapter_config.json has; the objects that are read take up to 25 times as many."""
LARGEST = sys.float_info.max


def read_json(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """The object in a file of at most so many bytes.

    Raises:
        ValueError: the file does not exist, is not a regular file, is too large, is not JSON, or holds another value
            than an object.
        OSError: it cannot be read.
    """
    with open_named(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} is larger than {most // 2**20} MiB, which no such file of a checkpoint or run is")
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def whole_number(values: object, key: str, least: int, most: int) -> int:
    """The whole number under a key of an object that was read.

    Raises:
        ValueError: there is no object or no such number in it.
    """
    found = values.get(key) if isinstance(values, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise ValueError(f"its {key} is {found!r:.40}, not a whole number from {least} to {most}")
    return found


def is_number(value: object) -> bool:
    """Whether a value is a finite number: Python's parser also takes NaN and integers beyond any float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object; the file appears under its name only when it is complete, and replaces an older one.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    with replacing(path) as file:
        write_all(file, as_json(value).encode(), path)


def as_json(value: Mapping[str, Any]) -> str:
    """An object as text with one entry per line."""
    return json.dumps(value, indent=2) + "\n"
