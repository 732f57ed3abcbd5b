"""A cache of rows for runs within the tests' process, removed at its end."""

from pathlib import Path
from tempfile import TemporaryDirectory

_FOLDER = TemporaryDirectory(prefix="seektune-cache-")
CACHE = Path(_FOLDER.name)
