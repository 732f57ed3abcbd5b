"""config.json of a checkpoint folder: its path, reading and writing, independent of its keys."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seektune.io.json_file import read_json, write_json

CONFIG = "config.json"
REMEDY = (
    "which SeekTune does not read; use the folder that transformers loaded (seektune merge merges an adapter into it)"
)
"""The end of a sentence about a folder that transformers wrote in its own spelling."""
ARCHITECTURES = ["DeepseekV4ForCausalLM"]
CODE_KEYS: dict[str, Callable[[Any], bool]] = {
    "auto_map": lambda value: False,
    "trust_remote_code": lambda value: False,
    "architectures": lambda value: value == ARCHITECTURES,
}
"""Keys that can make other libraries run foreign code, each with whether a value is harmless."""


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


def foreign_code(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config by which other libraries would run code that is not theirs, or take another architecture."""
    return [key for key, fits in CODE_KEYS.items() if config.get(key) and not fits(config[key])]


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without those keys."""
    foreign = foreign_code(config)
    return {key: value for key, value in config.items() if key not in foreign}


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json into an existing folder, without keys that name foreign code.

    Raises:
        OSError: it could not be written.
    """
    write_json(folder / CONFIG, without_code(config))
