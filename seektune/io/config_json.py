"""config.json of a checkpoint folder: its path, reading and writing, independent of its keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seektune.io.json_file import read_json, write_json

CONFIG = "config.json"


def config_file(place: Path) -> Path:
    """The config.json of a checkpoint folder; any other place is the file itself."""
    return place / CONFIG if place.is_dir() else place


def read_config(place: Path) -> dict[str, Any]:
    """The keys of config.json in a checkpoint folder, or of a config file itself.

    Raises:
        ValueError: it is missing or damaged.
        OSError: it cannot be read.
    """
    file = config_file(place)
    if not file.is_file():
        raise ValueError(f"{file} does not exist; a checkpoint folder holds {CONFIG} beside its safetensors")
    return read_json(file)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json into an existing folder.

    Raises:
        OSError: it could not be written.
    """
    write_json(folder / CONFIG, config)
