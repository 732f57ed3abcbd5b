"""Finds a checkpoint that a key of the recipe names."""

from pathlib import Path

from seektune.checkpoint import locate


def locate_named(key: str, source: str) -> Path:
    """The local folder of the checkpoint `source`, a folder or Hub id, which is the value of `key`.

    Raises:
        ValueError, OSError: as `locate`; the message begins with the key.
    """
    try:
        return locate(source)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    except OSError as error:
        raise OSError(f"{key}: {error}") from None
