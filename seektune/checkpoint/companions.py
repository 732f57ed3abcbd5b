"""The small files of a checkpoint folder beside its weights, copied without what would make others run foreign code."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seektune.checkpoint.resumable_dir import RECORD
from seektune.io.config_json import CONFIG, foreign_code, without_code
from seektune.io.json_file import read_json, write_json
from seektune.io.regular_file import open_regular
from seektune.io.tensor_names import INDEX
from seektune.io.text import on_one_line

COMPANIONS = (".json", ".txt", ".md", ".jinja")
"""Suffixes of files that are copied unchanged: tokenizer, generation config, chat template, model card."""
LICENSES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
"""Names, with any suffix, of files that state what the weights may be used for."""
ENCODING = "encoding"
"""The release's folder with the chat format: a description, cases, and Python that engines do not run."""
ENCODING_SUFFIXES = (*COMPANIONS, ".py", ".jsonl")
ABOUT_THE_BASE = ("generation_config.json", "chat_template.jinja")
"""Files that are as true of weights trained from a base as of the base."""
LARGEST_FILE = 64 * 2**20
MOST_FILES = 256
"""Limits of what is copied, as a folder may be anyone's."""

QUANTIZATION = "hf_quant_config.json"
"""How NVIDIA's tools quantized a checkpoint; it says nothing about a result in our formats, and servers follow it."""


def copy_companions(source: Path, folder: Path, original: Path | None = None) -> None:
    """Copy the small files next to the weights, except config.json and the index; settings lose foreign code.

    Args:
        source: a checkpoint folder.
        folder: an existing folder.
        original: a checkpoint folder; files that the source lacks come from there, but for its model card.
    """
    if original is not None:
        carry_companions(original, folder)
    _copy(_companions(source), source, folder)


def carry_companions(base: Path, folder: Path) -> None:
    """Copy what is as true of weights trained from `base`: licence, generation config, chat template and `encoding/`.

    Files that are there are replaced, so that the base's own chat template wins. Nothing happens without the folder.
    """
    _copy(_about_the_base(base), base, folder)


def code_notes(source: Path) -> Iterator[str]:
    """A note about each file of a checkpoint that asks other libraries to run foreign code."""
    for file in (source / CONFIG, *_companions(source)):
        if keys := foreign_code(_settings(file)):
            place = on_one_line(str(file))
            yield f"note: {place} has {' and '.join(keys)}, which names code of others; that is left out of exports"


def _copy(files: list[Path], source: Path, folder: Path) -> None:
    """Copy files to the paths that they have in the source."""
    for file in files:
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        settings = _settings(file)
        if foreign_code(settings):
            write_json(target, without_code(settings))
            continue
        with open_regular(file) as read, target.open("wb") as out:
            shutil.copyfileobj(read, out)


def _companions(source: Path) -> list[Path]:
    own = {CONFIG, INDEX, RECORD, QUANTIZATION}
    top = [file for file in sorted(source.iterdir()) if file.suffix in COMPANIONS or file.stem in LICENSES]
    return _small([file for file in top if file.name not in own]) + _encoding(source)


def _about_the_base(base: Path) -> list[Path]:
    if not base.is_dir():
        return []
    files = [file for file in sorted(base.iterdir()) if file.name in ABOUT_THE_BASE or file.stem in LICENSES]
    return _small(files) + _encoding(base)


def _encoding(source: Path) -> list[Path]:
    """The files of `encoding/` and of the folders in it, such as its tests; links to folders are not followed."""
    top = source / ENCODING
    below = [folder for folder in sorted(top.glob("*")) if folder.is_dir()]
    folders = [folder for folder in (top, *below) if folder.is_dir() and not folder.is_symlink()]
    files = [file for folder in folders for file in sorted(folder.iterdir())]
    return _small([file for file in files if file.suffix in ENCODING_SUFFIXES])


def _small(files: list[Path]) -> list[Path]:
    """Regular files, or links to some, within the limits."""
    return [file for file in files if file.is_file() and file.stat().st_size <= LARGEST_FILE][:MOST_FILES]


def _settings(file: Path) -> dict[str, Any]:
    """The keys of a config; none of another file, or of one that cannot be read."""
    try:
        return read_json(file) if file.name.endswith(CONFIG) else {}
    except ValueError:
        return {}
