"""Names that a server answers to: a web page elsewhere must not reach a local server under a name of its own."""

import ipaddress
import re
from collections.abc import Sequence

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
ANY_NAME = ("*",)
_PATTERN = re.compile(r"\*|(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]")


def is_loopback(address: str) -> bool:
    """Whether an IP address is reachable from this machine only."""
    return ipaddress.ip_address(address).is_loopback


def in_url(host: str) -> str:
    """A host as URLs and Host headers spell it."""
    return f"[{host}]" if ":" in host else host


def allowed_hosts(address: str, host: str, more: Sequence[str]) -> tuple[str, ...]:
    """Names that the Host header may have; a request with another is answered `Invalid host header`.

    On a loopback address these are its names and those in `more`. Elsewhere any name is allowed unless `more` has one.

    Args:
        address: the IP address that the server is bound to.
        host: the name that the address was given by.
        more: further names; `*.example.com` stands for all names below, `*` for any.
    """
    if not is_loopback(address) and not more:
        return ANY_NAME
    return (*LOOPBACK_NAMES, in_url(host), *more)


def check_host_names(names: Sequence[str]) -> None:
    """Check names for the Host header.

    Raises:
        ValueError: one has a scheme, a port or a path, or a `*` that is not at its beginning.
    """
    wrong = [name for name in names if not _PATTERN.fullmatch(name)]
    if wrong:
        raise ValueError(f"--allowed-hosts {wrong[0]}: give a host name without scheme, port and path, or *.NAME")
