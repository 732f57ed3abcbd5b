"""Files behind URLs: object storage and web servers through fsspec."""

from collections.abc import Mapping
from typing import Any

from seektune.data.sources.data_file import DataFile
from seektune.io.text import one_line

STATED = ("size", "mtime", "last_modified", "LastModified", "updated", "ETag", "etag", "md5Hash", "content_md5")
"""What file systems state about a file; a change of any of it counts as a change of the file."""


def remote_files(url: str) -> list[DataFile]:
    """The file of a URL, or those of a URL with wildcards, sorted by name.

    Raises:
        ValueError: nothing has that name, or no package for the file system is installed.
        OSError: the server cannot be reached.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        found = system.glob(path, detail=True) if "*" in path else {path: system.info(path)}
        return [
            DataFile(system.unstrip_protocol(name), _stamp(info))
            for name, info in sorted(found.items())
            if info["type"] == "file"
        ]
    except ValueError as error:
        raise ValueError(f"{url}: {one_line(error)}") from None
    except ImportError as error:
        raise ValueError(f"{url}: a package for this file system is missing ({one_line(error)})") from None
    # what an unreachable server raises differs between file systems
    except Exception as error:
        if isinstance(error, FileNotFoundError) and error.__cause__ is None:
            raise ValueError(f"{url}: no such file; data.path must name one, a folder or a glob") from None
        reason = one_line(error.__cause__ or error)
        raise OSError(
            f"{url} cannot be reached ({reason}); copy the files to this machine and set data.path to the copy"
        ) from None


def _stamp(info: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={info[key]}" for key in STATED if info.get(key) is not None)
