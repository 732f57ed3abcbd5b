"""The lock of a folder of prepared examples: one process writes, others wait and use what it wrote."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "lock"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be, until the block or the process ends.

    On a file system without locks two processes may write at once. They write the same bytes under temporary names, so
    that the result is the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        yield


@contextmanager
def disk_explained(folder: Path) -> Iterator[None]:
    """Raise an error of the disk as one that says what to do.

    Raises:
        OSError: the block could not write.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OSError(
            f"could not write the prepared examples into {folder}: {error.strerror}; finished shards are kept. Free "
            "space there, or set XDG_CACHE_HOME to a folder on another disk"
        ) from error
