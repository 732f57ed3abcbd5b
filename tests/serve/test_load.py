"""Many clients, slow clients and hostile clients: each gets its response, and the server survives."""

import gc
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
import torch.distributed as dist

from seektune.data.tokenizer import load_tokenizer
from seektune.generate import worker
from seektune.generate.detokenize import generate_all
from seektune.generate.engine import DecodeEngine
from seektune.generate.mesh import DecodeMesh
from seektune.generate.prefix_cache import PrefixCache
from seektune.generate.processes import DecodeProcesses
from seektune.generate.request import Request
from seektune.generate.running_batch import RunningSequence
from seektune.generate.sampling_params import GREEDY
from seektune.generate.session import LoadOptions
from seektune.parallel.process_group import ProcessSlot
from seektune.serve import api, scheduler
from seektune.serve.app import Served
from seektune.serve.job_stream import JobStream
from seektune.serve.limits import Limits
from seektune.serve.scheduler import GenerationJob
from tests.distributed.workers import run_workers
from tests.patience import HUNG

from .live import Gate, Live, endless, live
from .test_api import CHAT, QUESTION, TEXT

WORDS = ("the", "man", "picks", "up", "a", "red", "bucket", "and", "walks", "away", "from", "his", "house")


@pytest.mark.slow
def test_32_concurrent_streams_match_single_requests(model: Any, toy_model: Any, tokenizer: Any) -> None:
    """They arrive in four groups, while those before them run, until all run together."""
    asked = []
    for i in range(32):
        prompt = " ".join(WORDS[j % len(WORDS)] for j in range(i, i + 1 + (i * 7) % 60))
        asked.append((prompt, 10 + (i * 13) % 40))
    expected = []
    for prompt, most in asked:
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        request = Request(ids, most, GREEDY, frozenset({tokenizer.eos_id}))
        expected.append(generate_all(model, tokenizer, [request])[0][0].text)
    gate = Gate(toy_model(vocab_size=512))

    with live(Served({"toy": gate.model}, tokenizer)) as found, gate, ThreadPoolExecutor(32) as crowd:

        def ask(prompt: str, most: int) -> str:
            answer = found.post(TEXT, prompt=prompt, max_tokens=most, temperature=0, stream=True)
            return "".join(chunk["choices"][0]["text"] for chunk in answer.events())

        texts = []
        for here in range(8, 33, 8):
            texts += [crowd.submit(ask, *each) for each in asked[here - 8 : here]]
            found.until(lambda health, here=here: health["running"] + health["waiting"] == here)
            # a step passes at most twice: for those that run, and for those that join
            gate.let(2)
            found.until(lambda health, here=here: health["running"] == here)
        gate.open()
        assert [text.result(HUNG) for text in texts] == expected


@pytest.mark.slow
def test_million_token_prompts_and_10_mb_bodies_are_refused_while_others_are_served(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, rest = threading.Semaphore(0), threading.Event()

    def slowly(work: Any) -> Any:
        def wait(*given: Any) -> Any:
            begun.release()
            assert rest.wait(HUNG)
            return work(*given)

        return wait

    monkeypatch.setattr(api, "read_body", slowly(api.read_body))
    asks = [
        {"prompt": "a b " * 500_000},
        {"prompt": [7] * 1_000_000},
        {"messages": [{"role": "user", "content": "word " * 300_000}] * 5},
    ]
    with live(Served({"toy": model}, tokenizer)) as found, ThreadPoolExecutor(4) as crowd:
        long = [crowd.submit(found.post, CHAT if "messages" in ask else TEXT, **ask) for ask in asks]
        # while as many prompts are read as may be, it answers others
        for _ in range(api.LONG_BODIES):
            assert begun.acquire(timeout=HUNG)
        assert found.ask("POST", CHAT, b'{"prompt": "' + b"x" * 10_000_000 + b'"}').status == 413
        assert found.ask("GET", "/v1/models").status == 200
        rest.set()
        assert found.post(TEXT, prompt="The man", max_tokens=4).status == 200
        for answer in long:
            assert (answer.result(HUNG).status, answer.result().error["code"]) == (400, "context_length_exceeded")
        assert found.health() == {"status": "ok", "running": 0, "waiting": 0}


def linked(server: Live) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname, place.port or 0), timeout=HUNG)


def written(body: Any, *headers: str) -> bytes:
    sent = json.dumps(body).encode()
    kind = "\r\n".join(("Host: localhost", "Content-Type: application/json", *headers))
    head = f"POST {TEXT} HTTP/1.1\r\n{kind}\r\nContent-Length: {len(sent)}\r\n\r\n"
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
            reader.join(HUNG)
            assert not reader.is_alive()
        found.until(lambda health: health["running"] == health["waiting"] == 0)
        for link in links[7::8]:
            assert link.recv(12) == b"HTTP/1.1 200"
        for link in links:
            link.close()
        assert found.post(CHAT, messages=QUESTION, max_tokens=1).status == 200


@pytest.mark.slow
def test_client_that_does_not_read_is_disconnected(toy_model: Any, tokenizer: Any) -> None:
    """The response is larger than the network's buffers, so sending blocks, and its sequences are freed."""
    limits = Limits(max_model_len=1_000_000, client_timeout=0.5)
    body = {"prompt": ["The man"] * 24, "max_tokens": 900_000, "logprobs": 20, "stream": True}
    gate = Gate(endless(toy_model(vocab_size=512), tokenizer))
    with live(Served({"toy": gate.model}, tokenizer, limits)) as found, gate, linked(found) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.sendall(written(body))
        found.until(lambda health: health["running"] == 24)
        gate.open()
        found.until(lambda health: health["running"] == 0)


CLIENTS, AT_ONCE = 200, 24
GONE = {"queued": range(100, 160), "prefill": range(1, 7), "streaming": range(7, 13)}
"""The clients that disconnect in each phase."""


def crowd(mesh: DecodeMesh) -> tuple[list[int], list[object]]:
    """On rank 0: 200 clients, some of whom leave in each phase; the bytes of caches at the end, and what is left."""
    engines: list[DecodeEngine] = []

    def recorded(*given: Any, **named: Any) -> DecodeEngine:
        engines.append(DecodeEngine(*given, **named))
        return engines[-1]

    scheduler.__setattr__("DecodeEngine", recorded)
    limits = Limits(max_model_len=600, max_num_seqs=AT_ONCE, prefix_cache=KEPT)
    gate = Gate(endless(mesh.part, load_tokenizer(512)))
    with live(Served({"toy": mesh}, load_tokenizer(512), limits)) as found, gate:
        links = [asking(found, 0)]
        found.until(lambda health: health["running"] == 1)  # its first step is held
        links += [asking(found, i) for i in range(1, AT_ONCE)]
        found.until(lambda health: health["waiting"] == AT_ONCE - 1)
        gate.let(1)
        found.until(lambda health: health["running"] == AT_ONCE)  # the step of their prefill is held
        links += [asking(found, i) for i in range(AT_ONCE, CLIENTS)]
        found.until(lambda health: health["waiting"] == CLIENTS - AT_ONCE)
        leave(links, "queued")
        found.until(lambda health: health["waiting"] == CLIENTS - AT_ONCE - len(GONE["queued"]))
        assert found.ask("POST", TEXT, b'{"prompt": "' + b"x" * 10_000_000 + b'"}').status == 413
        for _ in range(6):  # these leave before their request is complete
            link = linked(found)
            link.sendall(written({"prompt": "The man"})[:-5])
            link.close()
        assert left_over().count("GenerationJob") == CLIENTS - len(GONE["queued"])
        leave(links, "prefill")
        gate.let(2)  # for the first, and for those that join
        for client in GONE["streaming"]:
            assert links[client].recv(12) == b"HTTP/1.1 200"
        leave(links, "streaming")
        gate.open()
        gone = {client for clients in GONE.values() for client in clients}
        for client in sorted({*range(CLIENTS)} - gone):
            assert everything(links[client]).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        found.until(lambda health: health["running"] == health["waiting"] == 0)
        found.until(lambda _: not left_over())
    return [engine.cache_bytes for engine in engines], left_over()


def left_over() -> list[object]:
    """Objects of requests that are still in memory."""
    gc.collect()
    return [type(x).__name__ for x in gc.get_objects() if isinstance(x, GenerationJob | JobStream | RunningSequence)]


def asking(server: Live, client: int) -> socket.socket:
    """A connection on which a client has asked for a stream."""
    tokens = 40 if client < AT_ONCE else 2
    link = linked(server)
    body = {"prompt": f"The man {client}", "max_tokens": tokens, "stream": True, "seed": client}
    link.sendall(written(body, "Connection: close"))
    return link


def leave(links: list[socket.socket], phase: str) -> None:
    for client in GONE[phase]:
        links[client].close()


def everything(link: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    parts = []
    while part := link.recv(2**16):
        parts.append(part)
    return b"".join(parts)


KEPT = 300_000
"""Bytes of a prefix cache, which these clients fill several times."""


def served_by_two(folder: Path) -> tuple[tuple[list[int], list[object]], int]:
    """In a worker: what `crowd` finds, and the bytes of this rank's prefix cache."""
    processes = DecodeProcesses(ProcessSlot(dist.get_world_size(), dist.get_rank(), worker=True))
    mesh = LoadOptions("fp32").read_spread(str(folder), processes)
    caches: list[PrefixCache] = []
    made = worker.PrefixCache

    def recorded(limit: int) -> PrefixCache:
        caches.append(made(limit))
        return caches[-1]

    worker.__setattr__("PrefixCache", recorded)
    running = mesh.lead(lambda: crowd(mesh)) if processes.is_main else ([], [])
    if not processes.is_main:
        mesh.follow()
    return running, caches[-1].nbytes


@pytest.mark.slow
def test_200_clients_of_two_ranks_of_whom_some_leave_in_each_phase(toy_model: Any, tmp_path: Path) -> None:
    toy_model(torch.float32, vocab_size=512).save_pretrained(tmp_path / "trained", "fp32")
    ((running, left), first), (_, second) = run_workers(2, served_by_two, tmp_path / "trained")
    assert running == [0], "one engine, which holds no sequences"
    assert left == [], "nothing of a request is left"
    assert 0 < first <= KEPT
    assert 0 < second <= KEPT
