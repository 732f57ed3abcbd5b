"""Many clients, slow clients and hostile clients: each gets its response, and the server survives."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from seektune.generate.detokenize import generate_all
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.serve.app import Served
from seektune.serve.limits import Limits

from .live import Live, live
from .test_api import CHAT, QUESTION, TEXT

WORDS = ("the", "man", "picks", "up", "a", "red", "bucket", "and", "walks", "away", "from", "his", "house")


@pytest.mark.slow
def test_32_concurrent_streams_match_single_requests(toy: Live, model: Any, tokenizer: Any) -> None:
    asked = []
    for i in range(32):
        prompt = " ".join(WORDS[j % len(WORDS)] for j in range(i, i + 1 + (i * 7) % 60))
        asked.append((prompt, 5 + (i * 13) % 50))
    expected = []
    for prompt, most in asked:
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        request = Request(ids, most, GREEDY, frozenset({tokenizer.eos_id}))
        expected.append(generate_all(model, tokenizer, [request])[0][0].text)
    together: list[int] = []

    def ask(i: int) -> str:
        time.sleep(0.02 * (i % 8))
        prompt, most = asked[i]
        answer = toy.post(TEXT, prompt=prompt, max_tokens=most, temperature=0, stream=True)
        together.append(toy.health()["running"])
        return "".join(chunk["choices"][0]["text"] for chunk in answer.events())

    with ThreadPoolExecutor(32) as crowd:
        assert list(crowd.map(ask, range(32))) == expected
    assert max(together) > 8


@pytest.mark.slow
def test_million_token_prompts_and_10_mb_bodies_are_refused_while_others_are_served(model: Any, tokenizer: Any) -> None:
    with live(Served({"toy": model}, tokenizer)) as found:
        asks = [
            {"prompt": "a b " * 500_000},
            {"prompt": [7] * 1_000_000},
            {"messages": [{"role": "user", "content": "word " * 300_000}] * 5},
        ]
        with ThreadPoolExecutor(4) as crowd:
            long = [crowd.submit(found.post, CHAT if "messages" in ask else TEXT, **ask) for ask in asks]
            large = crowd.submit(found.ask, "POST", CHAT, b'{"prompt": "' + b"x" * 10_000_000 + b'"}')
            # meanwhile it answers others
            began = time.monotonic()
            assert found.post(TEXT, prompt="The man", max_tokens=4).status == 200
            assert time.monotonic() - began < 20
            for answer in long:
                assert (answer.result().status, answer.result().error["code"]) == (400, "context_length_exceeded")
            assert large.result().status == 413
        assert found.health() == {"status": "ok", "running": 0, "waiting": 0}


def linked(server: Live) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname, place.port or 0), timeout=30)


def written(body: Any) -> bytes:
    sent = json.dumps(body).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    return head.encode() + sent


@pytest.mark.slow
def test_200_slow_clients_do_not_block_the_server(model: Any, tokenizer: Any) -> None:
    """Some send nothing, some half a request, some do not read the response, some disconnect."""
    limits = Limits(max_model_len=2000, max_num_seqs=16, max_queued_requests=250, client_timeout=3)
    whole = written({"prompt": "The man", "max_tokens": 20, "stream": True})
    with live(Served({"toy": model}, tokenizer, limits)) as found:
        links = [linked(found) for _ in range(200)]
        for i, link in enumerate(links):
            link.sendall((b"", whole[:40], whole[:-5], whole)[i % 4])
        for link in links[3::8]:
            link.close()
        answer = found.post(TEXT, prompt="A red bucket", max_tokens=4, temperature=0)
        assert answer.status == 200
        readers = [threading.Thread(target=link.recv, args=(100,)) for link in links[2::4]]
        for reader in readers:
            reader.start()
        for reader in readers:  # incomplete requests get a response after client_timeout
            reader.join(20)
            assert not reader.is_alive()
        found.until(lambda health: health["running"] == health["waiting"] == 0)
        for link in links[7::8]:
            assert link.recv(12) == b"HTTP/1.1 200"
        for link in links:
            link.close()
        assert found.post(CHAT, messages=QUESTION, max_tokens=1).status == 200


@pytest.mark.slow
def test_client_that_does_not_read_is_disconnected(model: Any, tokenizer: Any) -> None:
    """The response is larger than the network's buffers, so sending blocks, and its sequences are freed."""
    limits = Limits(max_model_len=30_000, client_timeout=0.5, request_timeout=60)
    body = {"prompt": ["The man"] * 24, "max_tokens": 20_000, "logprobs": 20, "stream": True}
    with live(Served({"toy": model}, tokenizer, limits)) as found, linked(found) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.sendall(written(body))
        found.until(lambda health: health["running"] == 24)
        found.until(lambda health: health["running"] == 0)
