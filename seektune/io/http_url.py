"""Addresses of HTTP servers as users write them."""

from urllib.parse import urlsplit


def check_http_url(url: str) -> str:
    """Check that requests can be sent to an address, and return it.

    Raises:
        ValueError: it is none, or holds a password, which would be shown in messages and is not sent.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"url must be ASCII without spaces, others as %20 and the like, not {url!r:.80}")
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
        parts.port  # noqa: B018 - raises where it is no port
    except ValueError as error:
        raise ValueError(f"url {url!r:.80}: {error}") from None
    if not is_http:
        raise ValueError(f"url must begin with http:// or https:// and name a host, not {url!r:.80}")
    if parts.username is not None:
        raise ValueError("url holds a user or password, which is not sent; leave it out")
    return url
