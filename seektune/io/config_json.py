"""config.json of a checkpoint folder: its path, reading and writing, in the keys of the release."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seektune.io.json_file import MOST_CONFIG_BYTES, read_json, write_json
from seektune.io.other_formats import other_format
from seektune.io.run_files import MODEL
from seektune.io.tensor_names import tensor_names
from seektune.io.transformers_config import is_transformers, released_keys

CONFIG = "config.json"
NEXTN = "num_nextn_predict_layers"
MOST_BLOCKS = 99
"""More blocks after the backbone than any model has."""
DRAFTER = "mtp."
"""How the names of tensors of the blocks after the backbone begin."""
ARCHITECTURES = ["DeepseekV4ForCausalLM"]
CODE_KEYS: dict[str, Callable[[Any], bool]] = {
    "auto_map": lambda value: False,
    "trust_remote_code": lambda value: False,
    "custom_pipelines": lambda value: False,
    "architectures": lambda value: value == ARCHITECTURES,
}
"""Keys that can make other libraries run foreign code, each with whether a value is harmless."""
ANYWHERE = ("auto_map", "trust_remote_code", "custom_pipelines")
"""Those that also count in the objects that a config holds, such as `text_config`."""


def config_file(place: Path) -> Path:
    """The config.json of a checkpoint folder; any other place is the file itself."""
    return place / CONFIG if place.is_dir() else place


def read_config(place: Path) -> dict[str, Any]:
    """The released keys of config.json in a checkpoint folder, or of a config file itself.

    Keys of transformers are translated. They do not say how many blocks follow the backbone: that many as the folder
    has weights of; in a file by itself, or in a folder without weights, as `num_nextn_predict_layers` says.

    Raises:
        ValueError: it is missing or damaged, or keys of transformers contradict others.
        OSError: it cannot be read.
    """
    file = config_file(place)
    if not file.is_file():
        missing = f"{file} does not exist; {_meant(place)}"
        raise ValueError(other_format(place) or missing)
    config = read_json(file, MOST_CONFIG_BYTES)
    if not is_transformers(config):
        return config
    try:
        return released_keys(config, _drafter_blocks(place, config))
    except ValueError as error:
        raise ValueError(f"{file} has the keys of transformers, but {error}") from None


def _meant(place: Path) -> str:
    """What to name instead of a folder that is no checkpoint."""
    if (place / MODEL / CONFIG).is_file():
        return f"this is the folder of a run: name {place / MODEL}"
    if (place / "adapter_config.json").is_file():
        return "this is an adapter: name its base as the model, and this folder as the adapter"
    return f"a checkpoint folder holds {CONFIG} beside its safetensors"


def lost_drafter(folder: Path) -> bool:
    """Whether transformers left out the blocks after the backbone when it wrote this folder.

    Raises:
        ValueError: config.json is missing or damaged.
        OSError: it cannot be read.
    """
    config = read_json(config_file(folder), MOST_CONFIG_BYTES)
    lost = is_transformers(config) and "compress_ratios" not in config and bool(config.get(NEXTN))
    return lost and _drafter_blocks(folder, config) == 0


def _drafter_blocks(place: Path, config: Mapping[str, Any]) -> int:
    names = tensor_names(place)
    if names is not None:
        return len({name.split(".")[1] for name in names if name.startswith(DRAFTER)})
    found = config.get(NEXTN)
    return min(found, MOST_BLOCKS) if isinstance(found, int) else 0


def foreign_code(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config by which other libraries would run code that is not theirs, or take another architecture."""
    own = [key for key, fits in CODE_KEYS.items() if config.get(key) and not fits(config[key])]
    return list(dict.fromkeys([*own, *(key for value in config.values() for key in _nested_code(value))]))


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without those keys."""
    foreign = foreign_code(config)
    return {key: _without_nested_code(value) for key, value in config.items() if key not in foreign}


def _nested_code(value: object) -> list[str]:
    if isinstance(value, list):
        return [key for item in value for key in _nested_code(item)]
    if not isinstance(value, dict):
        return []
    below = [key for item in value.values() for key in _nested_code(item)]
    return [key for key in ANYWHERE if value.get(key)] + below


def _without_nested_code(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nested_code(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_nested_code(item) for key, item in value.items() if key not in ANYWHERE}


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json into an existing folder, without keys that name foreign code.

    Raises:
        OSError: it could not be written.
    """
    write_json(folder / CONFIG, without_code(config))
