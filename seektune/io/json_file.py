"""Files that hold one JSON object: read with errors that name the file, and written whole."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seektune.io.atomic import replacing, write_all


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        ValueError: the file does not exist, is not JSON, or holds another value than an object.
        OSError: it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except RecursionError:
        raise ValueError(f"{path} is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


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
