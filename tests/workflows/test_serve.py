"""`seektune serve`: from the command line to an answer, and how it ends."""

import http.client
import json
import os
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.data.tokenizer import load_tokenizer
from seektune.generate.session import LoadOptions
from seektune.lora.files import save_adapter
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.state import adapter_state
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.workflows.serve import public_name
from tests.launch.forked import ForkedJob
from tests.patience import HUNG
from tests.places import ROOT
from tests.run_cli import CODE, seektune

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")


@pytest.fixture(scope="module")
def place(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in the released format, which never ends a greedy text, and an adapter that changes much."""
    folder = tmp_path_factory.mktemp("serve")
    model = toy_model(torch.float32, vocab_size=512, hidden_size=64, moe_intermediate_size=32)
    with torch.no_grad():
        model.head.weight[load_tokenizer(512).eos_id] = 0
    model.save_pretrained(folder / "base", format="released")
    adapt(model, matching(model, ["attn", "ffn.experts"]), AdapterShape(rank=2, alpha=4.0))
    init_adapters(model, seed=0)
    with torch.no_grad():
        for name, tensor in adapter_state(model).items():
            if name.endswith(".B"):
                tensor.normal_()
    save_adapter(model, folder / "adapter")
    return folder


@contextmanager
def served(*words: str, cwd: Path, files: int = 1024, **more: str) -> Iterator[tuple[ForkedJob, str]]:
    """A server of its own process, which may open so many files, and its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **more}
    code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}));{CODE}"
    with ForkedJob(code, ["serve", *words, "--port", "0"], cwd, environment, cwd / "printed") as process:
        room, said, *_ = process.wait_for("stops\n").splitlines()
        assert room.startswith("KV cache: ")
        assert said.startswith("serving ")
        yield process, said.split(" at ")[1].split(" ")[0]


def asked(url: str, path: str, body: Any = None, **headers: str) -> Any:
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, sent, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=HUNG) as answer:
        return json.load(answer)


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_an_adapter_is_a_second_model(place: Path, quantized: bool) -> None:
    words = [str(place / "base"), "--adapter", str(place / "adapter"), *(["--quantized"] if quantized else [])]
    with served(*words, cwd=place) as (process, url):
        names = [model["id"] for model in asked(url, "/v1/models")["data"]]
        assert names == ["base", "adapter"]  # not their paths
        ids = torch.randint(512, (1, 9), generator=torch.Generator().manual_seed(1))
        texts = {}
        for name, adapter in (("base", None), ("adapter", place / "adapter")):
            model = LoadOptions(quantized=quantized, adapter=adapter).read(str(place / "base"))
            body = {"model": name, "prompt": ids[0].tolist(), "max_tokens": 8, "temperature": 0, "logprobs": 0}
            texts[name] = asked(url, "/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
            with torch.no_grad():
                longer = model.generate(ids, 8, temperature=0)
                log = model(longer[:, :-1]).logits.log_softmax(-1)[0, 8:]
            expected = log.gather(1, longer[0, 9:, None])[:, 0]
            assert texts[name] == pytest.approx(expected.tolist(), abs=1e-3)
        assert texts["base"] != texts["adapter"]
        process.send_signal(signal.SIGTERM)
        process.communicate(HUNG)
        assert process.returncode == 0


@pytest.mark.slow
def test_idle_connections_stop_no_client_and_a_signal_lets_answers_end(place: Path) -> None:
    with served("base", "--max-model-len", "3000", cwd=place, files=256, SEEKTUNE_API_KEY="k") as (process, url):
        host, port = url.removeprefix("http://").split(":")
        links = [socket.create_connection((host, int(port)), timeout=HUNG) for _ in range(300)]  # more than files
        for link in links[::2]:
            link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localh")
        body = {"prompt": "The man", "max_tokens": 60, "temperature": 0, "stream": True}
        sent = urllib.request.Request(
            f"{url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer k"},
        )
        with urllib.request.urlopen(sent, timeout=HUNG) as answer:
            answer.readline()
            process.send_signal(signal.SIGINT)
            rest = answer.read().decode()
        assert rest.endswith("data: [DONE]\n\n")
        assert process.communicate(HUNG)[1] == ""
        assert process.returncode == 0
        for link in links:
            link.close()


@pytest.mark.slow
def test_an_answer_that_takes_too_long_is_cut(place: Path) -> None:
    with served("base", "--shutdown-timeout", "1", cwd=place) as (process, url):
        body = {"prompt": "The man", "max_tokens": 30_000, "temperature": 0, "stream": True}
        sent = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(sent, timeout=HUNG) as answer:
            answer.readline()
            process.send_signal(signal.SIGTERM)
            process.communicate(HUNG)
            assert process.returncode == 0
            with pytest.raises(http.client.IncompleteRead) as cut:
                answer.read()
        assert b"[DONE]" not in cut.value.partial


def test_names_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "mine" / "model"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name in (str(folder), f"{folder}/", ".", "../model", "../../mine/model"):
        assert public_name(name) == "model"
    assert public_name("..") == "mine"
    assert public_name("/") == "model"
    assert public_name("deepseek-ai/DeepSeek-V4-Flash") == "deepseek-ai/DeepSeek-V4-Flash"


@pytest.mark.slow
def test_mistakes_take_one_line(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, code, complaint in (
            (("base", "--port", port), 1, f"Address already in use: 127.0.0.1:{port}; choose another --port"),
            (("base", "--port", "0", "--adapter", "nowhere"), 2, "--adapter nowhere: no such folder"),
            (("base", "--port", "0", "--api-key", " k"), 2, "--api-key (SEEKTUNE_API_KEY) must be"),
            (("base", "--port", "0", "--allowed-hosts", "http://a"), 2, "--allowed-hosts http://a: give a host name"),
        ):
            answer = seektune("serve", *words, cwd=place)
            assert (answer.returncode, len(answer.stderr.splitlines())) == (code, 1), answer.stderr
            assert complaint in answer.stderr
