"""One reading of a path for every recipe key and flag: `~` is expanded, and what nobody expands is refused."""

import re
import unicodedata
from pathlib import Path

VARIABLE = re.compile(r"\$[A-Za-z_{(]")
"""What a shell, or another program's recipes, would expand."""
LONGEST_SHOWN = 200
"""Characters of a path that an error shows."""


def expand_path(text: str) -> str:
    """A path as a user writes it, with `~` and `~NAME` replaced by the home folder; Hub ids stay as they are.

    Raises:
        ValueError: it is empty, holds a variable or a control character, or no user has that name.
    """
    if not text.strip():
        raise ValueError("a path must not be empty")
    if any(unicodedata.category(letter) == "Cc" for letter in text):
        raise ValueError(f"the path {_shown(text)} holds a control character")
    if VARIABLE.search(text):
        raise ValueError(
            f"the path {_shown(text)}: $ is not expanded here; write the path out, or use ~ for your home folder"
        )
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        name = _shown(text.split("/")[0])
        known = "this user has no home folder" if name == "~" else f"the user {name[1:]} does not exist"
        raise ValueError(
            f"the path {_shown(text)}: {known}; write the path out, or ./{_shown(text)} for a folder of that name"
        ) from None


def _shown(path: str) -> str:
    """A path as an error shows it; one that is long or not printable is cut and escaped."""
    return path if path.isprintable() and len(path) <= LONGEST_SHOWN else f"{path[:LONGEST_SHOWN]!r}"


def user_path(text: str) -> Path:
    """As `expand_path`, as a Path."""
    return Path(expand_path(text))


def refuse_dangling(path: Path) -> None:
    """Check that a place to write to is not behind a link that leads nowhere, perhaps to a disk that is missing.

    Raises:
        ValueError: it, or a folder above it, is such a link.
    """
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise ValueError(f"{path}: {place} is a link to {place.readlink()}, which does not exist; make it first")


def refuse_no_folder(path: Path) -> None:
    """Check that a folder can be made, or is one.

    Raises:
        ValueError: it, or a folder above it, is a file, or a link that leads nowhere.
    """
    refuse_dangling(path)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{path}: {place} is a file; name a folder")
