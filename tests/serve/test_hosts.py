"""Names that a server answers to, and pages of other origins."""

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from seektune.serve.app import Served
from seektune.serve.config import ServeConfig
from seektune.serve.hosts import LOOPBACK_NAMES, allowed_hosts

from .live import Live, live


def test_a_local_server_answers_to_local_names(toy: Live) -> None:
    for host in ("localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000", "LOCALHOST"):
        assert toy.ask("GET", "/health", Host=host).status == 200, host
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "x", ""):
        for method, path in (("GET", "/"), ("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/health")):
            answer = toy.ask(method, path, {"prompt": "x"} if method == "POST" else None, Host=host)
            assert answer.status == 400, host
            assert answer.error["message"].startswith("Invalid host header"), host


@pytest.mark.parametrize(
    ("address", "host", "more", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", (), (*LOOPBACK_NAMES, "127.0.0.1")),
        ("127.0.0.2", "127.0.0.2", (), (*LOOPBACK_NAMES, "127.0.0.2")),
        ("::1", "::1", (), (*LOOPBACK_NAMES, "[::1]")),
        ("127.0.0.1", "localhost", ("me.example",), (*LOOPBACK_NAMES, "localhost", "me.example")),
        ("0.0.0.0", "0.0.0.0", (), ("*",)),
        ("10.0.0.1", "node7", ("node7.cluster",), (*LOOPBACK_NAMES, "node7", "node7.cluster")),
    ],
)
def test_allowed_hosts(address: str, host: str, more: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert allowed_hosts(address, host, more) == expected


@pytest.mark.parametrize("name", ["http://a", "a:80", "a/b", "a*", "", "*a", "a b"])
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"--allowed-hosts .*: give a host name without scheme, port and path"):
        ServeConfig(allowed_hosts=(name,))


def test_host_names_and_patterns() -> None:
    ServeConfig(allowed_hosts=("a.example", "*.example", "*", "[::1]", "10.0.0.1", "my_host-1"))


@pytest.mark.parametrize("key", ["\udcff", "a\nb", " a", "a ", "\x00"])
def test_a_key_that_no_client_can_send_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="--api-key"):
        ServeConfig(api_key=key)


def test_other_origins_are_allowed_by_name(model, tokenizer) -> None:
    asks = {"Origin": "https://ui.example", "Access-Control-Request-Method": "POST"}
    wants = {**asks, "Access-Control-Request-Headers": "authorization,content-type"}
    path = "/v1/chat/completions"
    with live(Served({"toy": model}, tokenizer, key="k", origins=("https://ui.example",))) as found:
        answer = found.ask("OPTIONS", path, **wants)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "https://ui.example"
        assert "authorization" in answer.headers["access-control-allow-headers"]
        refused = found.ask("GET", "/v1/models", Origin="https://ui.example")
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://ui.example")
        assert found.ask("OPTIONS", path, **{**wants, "Origin": "https://evil.example"}).status == 400
    with live(Served({"toy": model}, tokenizer)) as found:
        assert found.ask("OPTIONS", path, **wants).status == 405
        assert "access-control-allow-origin" not in found.ask("GET", "/v1/models", Origin="https://ui.example").headers
