"""Rewards: verifiers, a server over HTTP with retries, and installed plug-ins."""

import json
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from seektune.rewards import reward as module
from seektune.rewards.answer_metrics import Answer
from seektune.rewards.config import PluginRewardConfig, ServerRewardConfig, VerifierConfig
from seektune.rewards.json_server import JsonServer, longest_request
from seektune.rewards.reward import make_reward
from seektune.rewards.sample import RewardSample
from seektune.rewards.server import ServerReward
from seektune.rewards.tool_server import ToolRequest, ToolServer
from seektune.signals import Interrupted
from tests.patience import HUNG

CALL = ("weather", '{"city": "Rome"}')


def sample(answer: str, reference: str, truncated: bool = False, calls: Sequence[Any] = ()) -> RewardSample:
    return RewardSample("prompt", Answer(answer, calls), Answer(reference, [CALL] if calls else ()), truncated)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("exact_match", sample("8 5", "8 5"), sample("8", "8 5")),
        ("regex", sample("it is 85.", r"\b85\b"), sample("it is 851.", r"\b85\b")),
        ("last_number", sample("40 + 45 = 85", "85"), sample("85 or 86", "85")),
        ("json_schema", sample('{"a": 1}', '{"required": ["a"]}'), sample('{"b": 1}', '{"required": ["a"]}')),
        ("tool_call_equal", sample("", "", calls=[CALL]), sample("", "", calls=[("weather", "{}")])),
    ],
)
def test_a_verifier_gives_1_or_0(name: Any, right: RewardSample, wrong: RewardSample) -> None:
    verify = make_reward([VerifierConfig(metric=name)])
    assert verify([right, wrong]) == [1.0, 0.0]
    cut = RewardSample(right.prompt, right.answer, right.reference, truncated=True)
    assert verify([cut]) == [0.0]


def test_mathematics_is_compared_by_value() -> None:
    pytest.importorskip("math_verify", reason="the extra rewards is not installed")
    verify = make_reward([VerifierConfig(metric="math")])
    assert verify([sample(r"so it is $\frac{1}{2}$", "$0.5$"), sample("$0.6$", "$0.5$")]) == [1.0, 0.0]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from seektune.rewards import answer_metrics

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(answer_metrics, "import_module", absent)
    with pytest.raises(ValueError, match=r"math needs math-verify; install it with: pip install 'seektune\[rewards\]'"):
        make_reward([VerifierConfig(metric="math")])([sample("1", "1")])


class Handler(BaseHTTPRequestHandler):
    """Answers with the prepared answers of the server, in turn."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)  # type: ignore[attr-defined]
        status, text = self.server.answers.pop(0)  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def server() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), Handler)
    server.answers = []
    server.bodies = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def asked(server: Any, answers: list[tuple[int, str]], retries: int = 2) -> tuple[Any, list[float]]:
    """The reward of a server with prepared answers, and the pauses between its tries."""
    server.answers[:] = answers
    pauses: list[float] = []
    url = f"http://127.0.0.1:{server.server_port}/reward"
    return ServerReward(JsonServer("reward", "answers", url, 60, retries, sleep=pauses.append)), pauses


def test_pauses_are_bounded_and_end_at_a_request_to_stop() -> None:
    slept: list[float] = []

    def stop() -> None:
        if len(slept) == 100:
            raise Interrupted("SIGTERM")

    # nothing listens at port 0
    server = JsonServer("reward", "answers", "http://127.0.0.1:0", 60, 10**9, stop, slept.append)
    reward = ServerReward(server)
    with pytest.raises(Interrupted):
        reward([sample("a", "b")])
    # 1 + 2 + 4 + 8 + 16 + 30 + 30 seconds, and 9 of the next pause
    assert slept == [1.0] * 100
    slept.clear()
    with pytest.raises(OSError, match="failed after 8 tries"):
        ServerReward(replace(server, retries=7, stop=lambda: None))([sample("a", "b")])
    assert len(slept) == 91


@pytest.fixture
def dripping() -> Iterator[Any]:
    """The port of a server that sends a byte of its answer now and then, and never ends."""
    gone = threading.Event()

    class Dripping(Handler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while not gone.wait(0.01):
                    self.wfile.write(b" ")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port
    gone.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_sends_a_byte_now_and_then_is_left(dripping: int) -> None:
    server = JsonServer("tool", "calls", f"http://127.0.0.1:{dripping}/", 0.05, 1, sleep=lambda _: None)
    with pytest.raises(OSError, match=r"failed after 2 tries: it gave no whole answer in 0\.05 seconds$"):
        server.post({})


def test_a_part_that_comes_late_is_no_answer(dripping: int) -> None:
    """Even where the one who waits looks only later."""
    server = JsonServer("tool", "calls", f"http://127.0.0.1:{dripping}/", HUNG, 1)
    answer: Future[bytes] = Future()
    server._fetch(b"{}", -math.inf, answer)
    with pytest.raises(TimeoutError, match="it gave no whole answer"):
        server._received(answer)


@pytest.mark.slow
def test_a_request_to_stop_is_obeyed_within_a_try(dripping: int) -> None:
    asked: list[int] = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise Interrupted("SIGTERM")

    server = JsonServer("tool", "calls", f"http://127.0.0.1:{dripping}/", 60, 0, stop)
    with pytest.raises(Interrupted):
        ToolServer(server, 10, 2)([ToolRequest("1", 1, [{}])])


def test_a_server_gives_rewards_after_failures(server: Any) -> None:
    reward, pauses = asked(server, [(429, ""), (503, ""), (200, '{"rewards": [0.5, 2]}')])
    assert reward([sample("a", "b"), sample("c", "d", truncated=True)]) == [0.5, 2.0]
    assert sum(pauses) == 1 + 2
    first, second = server.bodies[-1]["samples"]
    assert first["prompt"] == "prompt"
    assert first["answer"]["text"] == "a"
    assert first["reference"]["text"] == "b"
    assert second["truncated"] is True


@pytest.mark.parametrize(
    ("answers", "error", "said"),
    [
        ([(500, "")] * 3, OSError, r"the reward server http\S+ failed after 3 tries: HTTP Error 500"),
        ([(404, "")], ValueError, "refuses the answers: HTTP 404"),
        ([(200, "<html>")], ValueError, "answered with something else than JSON"),
        ([(200, '{"rewards": ["a"]}')], ValueError, "must answer with"),
        ([(200, '{"rewards": [1e400]}')], ValueError, "must answer with"),
        ([(200, '{"rewards": [' + "9" * 400 + "]}")], ValueError, "must answer with"),
        ([(200, '{"rewards": [true]}')], ValueError, "must answer with"),
    ],
)
def test_errors_of_a_server_are_one_line(server: Any, answers: Any, error: type[Exception], said: str) -> None:
    reward, _ = asked(server, answers)
    with pytest.raises(error, match=said) as found:
        reward([sample("a", "b")])
    assert "\n" not in str(found.value)


def test_the_number_of_rewards_is_checked(server: Any) -> None:
    asked(server, [(200, '{"rewards": [1]}')])
    section = ServerRewardConfig(name="server", url=f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(ValueError, match="the reward server gave 1 values for 2 answers"):
        make_reward([section])([sample("a", "b")] * 2)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/passwd", "url must begin with http"),
        ("http://:80/", "url must begin with http"),
        ("http://user:secret@host/", "holds a user or password, which is not sent"),
        ("http://host:99999/", "Port out of range"),
        ("http://host/a b", "url must be ASCII without spaces"),
        ("http://host/\u00e9", "url must be ASCII without spaces"),
    ],
)
def test_addresses_that_no_request_can_have_are_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServerRewardConfig(name="server", url=url)


def test_the_longest_request_counts_tries_and_pauses() -> None:
    assert longest_request(30, 0) == 30
    assert longest_request(30, 3) == 4 * 30 + 1 + 2 + 4
    assert longest_request(0.5, 7) == 8 * 0.5 + 1 + 2 + 4 + 8 + 16 + 30 + 30
    assert longest_request(1, 10**9) > 30.9e9


def lengths(samples: Sequence[RewardSample]) -> list[float]:
    """A plug-in."""
    return [len(each.answer.text) for each in samples]


def broken(samples: Sequence[RewardSample]) -> list[float]:
    """A plug-in."""
    raise KeyError(samples[0].prompt)


def worded(samples: Sequence[RewardSample]) -> list[str]:
    """A plug-in."""
    return ["good"] * len(samples)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "^the reward plugin broken failed: KeyError: 'prompt'$"),
        ("worded", "^the reward plugin gave something else than a list of numbers$"),
        ("absent", "^the reward plugin absent cannot be imported: AttributeError: "),
    ],
)
def test_errors_of_plugins_name_them(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    point = EntryPoint(name, f"{__name__}:{name}", module.ENTRY_POINTS)
    monkeypatch.setattr(module, "entry_points", lambda group: EntryPoints([point]).select(group=group))
    with pytest.raises(ValueError, match=said):
        make_reward([PluginRewardConfig(name="plugin", plugin=name)])([sample("a", "b")])


def test_rewards_of_plugins_are_added_with_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("lengths", f"{__name__}:lengths", module.ENTRY_POINTS)
    monkeypatch.setattr(module, "entry_points", lambda group: EntryPoints([point]).select(group=group))
    plugin = PluginRewardConfig(name="plugin", plugin="lengths", weight=0.1)
    total = make_reward([VerifierConfig(metric="exact_match", weight=2.0), plugin])
    assert total([sample("abc", "abc"), sample("ab", "abc")]) == pytest.approx([2.3, 0.2])
    with pytest.raises(ValueError, match=r"no installed package offers the reward 'size' \(.*installed: lengths\)"):
        make_reward([PluginRewardConfig(name="plugin", plugin="size")])
