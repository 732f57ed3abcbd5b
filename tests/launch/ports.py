"""Ports of loopback that no other process takes while a test needs them."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def held_port(ports: range = range(1)) -> Iterator[int]:
    """A free port of these (0 is any), bound here, so that only who allows reuse, as torch's store does, gets it too.

    Raises:
        OSError: all of them are taken.
    """
    with socket.socket() as held:
        for port in ports:
            with suppress(OSError):
                held.bind(("127.0.0.1", port))
                break
        else:
            raise OSError(f"no free port in {ports}")
        # only now, or another test's held port could be taken
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield held.getsockname()[1]
