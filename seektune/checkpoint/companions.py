"""The small files of a checkpoint folder beside its weights, copied without what would make others run foreign code."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seektune.checkpoint.resumable_dir import RECORD
from seektune.io.config_json import CONFIG, foreign_code, without_code
from seektune.io.json_file import read_json, write_json
from seektune.io.tensor_names import INDEX

COMPANIONS = (".json", ".txt", ".md", ".jinja")
"""Suffixes of files that are copied unchanged: tokenizer, generation config, chat template, model card."""

QUANTIZATION = "hf_quant_config.json"
"""How NVIDIA's tools quantized a checkpoint; it says nothing about a result in our formats, and servers follow it."""


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the small files next to the weights, except config.json and the index; settings lose foreign code."""
    for file in _companions(source):
        settings = _settings(file)
        if foreign_code(settings):
            write_json(folder / file.name, without_code(settings))
        else:
            shutil.copyfile(file, folder / file.name)


def code_notes(source: Path) -> Iterator[str]:
    """A note about each file of a checkpoint that asks other libraries to run foreign code."""
    for file in (source / CONFIG, *_companions(source)):
        if keys := foreign_code(_settings(file)):
            yield f"note: {file} has {' and '.join(keys)}, which names code of others; that is left out of exports"


def _companions(source: Path) -> list[Path]:
    own = {CONFIG, INDEX, RECORD, QUANTIZATION}
    return [
        file
        for file in sorted(source.iterdir())
        if file.is_file() and file.suffix in COMPANIONS and file.name not in own
    ]


def _settings(file: Path) -> dict[str, Any]:
    """The keys of a config; none of another file, or of one that cannot be read."""
    try:
        return read_json(file) if file.name.endswith(CONFIG) else {}
    except ValueError:
        return {}
