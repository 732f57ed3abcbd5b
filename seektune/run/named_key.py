"""Messages about files that a key of the recipe names begin with that key."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seektune.checkpoint import locate


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Begin the message of a ValueError or OSError with a key of the recipe."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    except OSError as error:
        raise OSError(f"{key}: {error}") from None


def locate_named(key: str, source: str) -> Path:
    """The local folder of the checkpoint `source`, a folder or Hub id, which is the value of `key`.

    Raises:
        ValueError, OSError: as `locate`; the message begins with the key.
    """
    with naming(key):
        return locate(source)
