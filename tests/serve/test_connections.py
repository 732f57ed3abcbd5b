"""Connections without a request: they have a deadline, and none takes the place of a client."""

import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from seektune.serve.app import Served
from seektune.serve.connections import ConnectionLimits
from seektune.serve.limits import Limits
from tests.patience import HUNG

from .live import Gate, Live, live

LIMITS = Limits()
HALF_HEADER = b"POST /v1/completions HTTP/1.1\r\nHost: local"
HALF_BODY = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def linked(server: Live) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname, place.port or 0), timeout=HUNG)


def ended(link: socket.socket) -> bool:
    """Whether the server has closed the connection; waits until it sends something or does."""
    try:
        return link.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", HALF_HEADER, WHOLE + HALF_HEADER], ids=["nothing", "half", "keep-alive"])
def test_a_connection_without_a_request_has_a_deadline(model: Any, tokenizer: Any, sent: bytes) -> None:
    with live(Served({"toy": model}, tokenizer, LIMITS)) as found, linked(found) as link:
        link.sendall(sent)
        if sent.startswith(WHOLE):
            assert link.recv(12) == b"HTTP/1.1 200"
        found.advance(LIMITS.client_timeout + 1)
        while not ended(link):
            pass


def test_a_request_outlives_the_deadline_of_its_connection(toy_model: Any, tokenizer: Any) -> None:
    gate = Gate(toy_model(vocab_size=512))
    with live(Served({"toy": gate.model}, tokenizer, LIMITS)) as found, gate:
        gate.let(1)
        with found.response("POST", "/v1/completions", {"prompt": "x", "max_tokens": 2, "stream": True}) as answer:
            idle = linked(found)
            found.advance(LIMITS.client_timeout + 1)
            assert ended(idle)  # it came later, so the request's deadline is over as well
            gate.open()
            assert answer.read().endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("sent", [b"", HALF_HEADER, HALF_BODY], ids=["nothing", "half a header", "half a body"])
def test_clients_take_the_places_of_connections_without_a_request(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    limits = ConnectionLimits(timeout=HUNG, connections=8, accepted_at_once=2)
    monkeypatch.setattr(ConnectionLimits, "of_process", lambda timeout: limits)
    with live(Served({"toy": model}, tokenizer, Limits())) as found:
        links = [linked(found) for _ in range(30)]
        for link in links:
            link.sendall(sent)
        assert found.health()["status"] == "ok"
        assert found.post("/v1/completions", prompt="x", max_tokens=1).status == 200
        assert all(ended(link) for link in links[:20])
        for link in links:
            link.close()


@pytest.mark.parametrize(
    ("files", "expected"), [(1024, (512, 64)), (256, (128, 16)), (2**20, (4096, 64)), (-1, (4096, 64))]
)
def test_bounds_follow_from_the_limit_of_files(
    monkeypatch: pytest.MonkeyPatch, files: int, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (files, files))
    found = ConnectionLimits.of_process(60)
    assert (found.connections, found.accepted_at_once) == expected
    assert files == -1 or found.connections + 4 * found.accepted_at_once < files
