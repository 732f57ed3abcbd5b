"""Finds the files of a place: a file, a folder, a glob or a URL of any file system that fsspec knows."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from seektune.data.sources.data_file import COMPRESSIONS, DataFile, check_kind, is_url, suffixes
from seektune.data.sources.raw import READERS
from seektune.data.sources.remote import remote_files
from seektune.io.regular_file import check_regular

GLOB = re.compile(r"[*?\[]")
_NUMBERED = re.compile(r"-(?P<number>\d+)-of-(?P<count>\d+)\.")


def files_of(place: str, split: str) -> list[DataFile]:
    """The files of a split: those that a file, glob or URL names, or of a folder those of the split.

    Raises:
        ValueError: there are none, or they are not as they should be; the message names the place.
        OSError: the place cannot be reached.
    """
    files = split_files(place, split) or plain_files(place)
    if not files:
        raise ValueError(f"{place}: no files of rows ({', '.join(READERS)}, also with {' or '.join(COMPRESSIONS)})")
    return files


def split_files(place: str, split: str) -> list[DataFile]:
    """Files of a split in a folder or its `data/`, in order: `<split>.jsonl` or another kind, or shards named as on
    the Hub (`train-00000-of-00001.parquet`); empty if the place is not a folder or has none.

    Raises:
        ValueError: there are two kinds of file for it, or a shard is missing.
        OSError: the place cannot be reached.
    """
    name = re.compile(rf"{re.escape(split)}(-\d+-of-\d+)?({_any(READERS)})({_any(COMPRESSIONS)})?")
    for folder in (place, f"{place.rstrip('/')}/data") if _is_folder(place) else ():
        files = [file for file in _in_folder(folder) if name.fullmatch(_name(file))]
        if files:
            _check_one_kind(folder, files)
            check_numbers([file.path for file in files])
            return files
    return []


def plain_files(place: str) -> list[DataFile]:
    """The file of that name, those of a glob, or all of a folder that hold rows, sorted by name.

    Raises:
        ValueError: nothing has that name, it does not hold rows, or a folder has two kinds of file or lacks one of
            those that are numbered.
        OSError: the place cannot be reached.
    """
    if files := _in_folder(place):
        _check_one_kind(place, files)
        check_numbers([file.path for file in files])
        return files
    if _is_folder(place):
        return []
    files = remote_files(place) if is_url(place) else _local(place)
    for file in files:
        check_kind(file)
    return files


def _in_folder(place: str) -> list[DataFile]:
    """Files of rows in a folder; empty for anything else."""
    if not _is_folder(place):
        return []
    if is_url(place):
        return [file for file in remote_files(f"{place.rstrip('/')}/*") if suffixes(file.path)[0] in READERS]
    return [_entry(file) for file in sorted(Path(place).iterdir()) if suffixes(file.name)[0] in READERS]


def _is_folder(place: str) -> bool:
    """Whether a place is a folder; file systems behind URLs are not asked, as not all of them have folders."""
    if is_url(place):
        return suffixes(place)[0] == "" and not GLOB.search(place)
    return Path(place).is_dir()


def _local(place: str) -> list[DataFile]:
    path = Path(place)
    if path.exists() or path.is_symlink() or not GLOB.search(place):
        return [_entry(path)]
    # from the root, as pathlib takes only relative patterns
    root = Path(path.anchor or ".")
    return [_entry(file) for file in sorted(root.glob(str(path.relative_to(path.anchor)))) if file.is_file()]


def _entry(path: Path) -> DataFile:
    try:
        if not path.is_dir():
            check_regular(path)
        found = path.stat()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file or folder; data.path must name one, a glob or a URL") from None
    return DataFile(str(path), f"{found.st_size} {found.st_mtime_ns}")


def _check_one_kind(place: str, files: Sequence[DataFile]) -> None:
    kinds = {(suffixes(file.path), "-of-" in _name(file)) for file in files}
    if len(kinds) > 1:
        names = ", ".join(map(_name, files))
        raise ValueError(f"{place}: {names:.200} are several kinds of file; keep one kind, or name files by a glob")


def check_numbers(paths: Sequence[str]) -> None:
    """Check that of the files of a folder numbered `-00000-of-00002`, from 0 or 1, every number is there, and no other.

    Raises:
        ValueError: one is missing or left from before; the message names a file and the number.
    """
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    for path in paths:
        if found := _NUMBERED.search(path.rsplit("/", 1)[-1]):
            parts.setdefault(path[: path.rindex(found[0])], {})[path] = int(found["number"]), int(found["count"])
    for numbered in parts.values():
        _check_parts(numbered)


def _check_parts(numbered: Mapping[str, tuple[int, int]]) -> None:
    here = {number for number, _ in numbered.values()}
    for path, (_, count) in numbered.items():
        if len(numbered) > count:
            raise ValueError(f"{path} is one of {count} by its name, but there are {len(numbered)}; remove old files")
        first = 1 if count in here else 0
        missing = next((number for number in range(first, count + first) if number not in here), None)
        if missing is not None:
            raise ValueError(f"{path} is one of {count} by its name, but number {missing} is missing")


def _name(file: DataFile) -> str:
    return file.path.rsplit("/", 1)[-1]


def _any(suffixes: object) -> str:
    assert isinstance(suffixes, dict), "suffixes are the keys of a table"
    return "|".join(map(re.escape, suffixes))
