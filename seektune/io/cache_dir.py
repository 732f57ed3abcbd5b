"""The user's cache folder, for downloaded datasets and compiled kernels."""

from collections.abc import Mapping
from pathlib import Path


def cache_dir(environment: Mapping[str, str]) -> Path:
    """SeekTune's folder in the user's cache, by the variables of a process; it may not exist yet.

    XDG_CACHE_HOME counts where it is absolute, as its specification says.
    """
    base = Path(environment.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "seektune"
