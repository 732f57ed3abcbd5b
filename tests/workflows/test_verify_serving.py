"""`seektune verify-serving` against our own server, a merged model, and servers that do not do what they are asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.data.chat_format.encode import render_chat_prompt
from seektune.data.tokenizer import load_tokenizer
from seektune.evaluate.served_model import ServedModel
from seektune.generate.session import LoadOptions
from seektune.lora.build import share_weights
from seektune.lora.files import load_adapter, save_adapter
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.merge import merge
from seektune.lora.state import adapter_state
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.workflows.served_chat import QUESTION, TokenNames, chat_sentence
from seektune.workflows.verify_serving import ADAPTER, BASE, judge, verify_serving
from tests.run_cli import seektune

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from seektune.serve.app import Served
from tests.serve.live import live


@pytest.fixture(scope="module")
def place(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter that changes much, and both merged."""
    folder = tmp_path_factory.mktemp("served")
    model = toy_model(torch.float32, vocab_size=512)
    model.save_pretrained(folder / "base", format="fp32")
    adapt(model, matching(model, ["attn.wo_b", "head"]), AdapterShape(rank=2, alpha=4.0))
    init_adapters(model, seed=0)
    with torch.no_grad():
        for name, tensor in adapter_state(model).items():
            if name.endswith(".B"):
                tensor.normal_()
    save_adapter(model, folder / "adapter")
    merge(folder / "base", folder / "adapter", folder / "merged", "bf16")
    return folder


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    base = LoadOptions().read(str(place / "base"))
    adapted = share_weights(base)
    load_adapter(adapted, place / "adapter")
    models = {"base": base, "adapter": adapted, "merged": LoadOptions().read(str(place / "merged"))}
    with live(Served(models, load_tokenizer(512))) as found:
        yield found.url


def verdict(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[bool, str]:
    serves = verify_serving(*arguments, tolerance=0.02)
    return serves, capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "adapter", "serves", "said"),
    [
        (None, False, True, "\nserves the base\n"),
        ("base", True, False, "\nserves the base\n"),
        ("adapter", True, True, "\nserves the adapter\n"),
        ("merged", True, True, "\nserves the adapter\n"),
        ("adapter", False, False, "\ndoes not serve the base\n"),
    ],
)
def test_our_server_is_recognized(place, url, capsys, name, adapter, serves, said):
    reading = LoadOptions(adapter=place / "adapter" if adapter else None)
    found, text = verdict(capsys, ServedModel(url, name), str(place / "base"), reading)
    assert found == serves
    assert said in text
    assert "tokens, as ours for chat or thinking or thinking with effort high; by the next token's log-prob" in text
    assert "abilities it is ours for chat (0.0000 nats)\n" in text


@contextmanager
def fake(answer: Callable[[str, dict[str, Any]], tuple[int, Any]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, found = answer(self.path, body)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_that_ignores_the_adapter_serves_the_base(place, url, capsys):
    """It answers to the adapter's name with the base's numbers, and adds an effort to chats."""
    real = ServedModel(url, "base")

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/chat/completions":
            return 200, {"usage": {"prompt_tokens": 1000}}
        best = real.best_logprobs(body["prompt"], body["logprobs"])
        return 200, {"choices": [{"logprobs": {"top_logprobs": [{**best, "\ufffd": -0.1}]}}]}

    reading = LoadOptions(adapter=place / "adapter")
    with fake(answer) as address:
        found, text = verdict(capsys, ServedModel(address, "adapter"), str(place / "base"), reading)
    assert not found
    assert "\nserves the base\n" in text
    assert "1000 tokens, unlike ours" in text


@pytest.mark.parametrize(("moved", "served"), [(0, True), (1, False)])
def test_tokens_are_compared_by_their_ids(place, url, capsys, moved, served):
    """The right values of other tokens are not the base's; prompts of chats are compared token for token."""
    real = ServedModel(url, "base")
    tokenizer = load_tokenizer(512)
    names = TokenNames.of(tokenizer, 512)
    thinking = render_chat_prompt(QUESTION, (), "thinking", None, "preview").ids(tokenizer)

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/chat/completions":
            assert body["return_token_ids"]
            return 200, {"usage": {"prompt_tokens": 1}, "prompt_token_ids": [*thinking[: -moved or None], *[7] * moved]}
        assert body["return_tokens_as_token_ids"]
        best = names.identify(real.best_logprobs(body["prompt"], body["logprobs"]))
        named = {f"token_id:{(id + moved) % 512}": value for id, value in best.items()}
        return 200, {"choices": [{"logprobs": {"top_logprobs": [named]}}]}

    with fake(answer) as address:
        found, text = verdict(capsys, ServedModel(address, "x"), str(place / "base"), LoadOptions())
    assert found == served
    if served:
        assert "the server's prompt is ours for thinking or thinking with effort high, token for token\n" in text
    else:
        assert f"is none of ours; it differs from that for chat after {len(thinking) - 1}\n" in text


def test_a_chat_that_the_server_writes_otherwise_is_noticed_at_equal_length(url):
    """It says how many tokens it has, and which token is likely next."""
    real = ServedModel(url, "base")
    tokenizer = load_tokenizer(512)
    prompt = render_chat_prompt(QUESTION, (), "thinking", None, "preview").ids(tokenizer)
    names = TokenNames.of(tokenizer, 512)
    other = [prompt[0], *reversed(prompt[1:])]
    said = {}

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/completions":
            return 200, {"choices": [{"logprobs": {"top_logprobs": [real.best_logprobs(body["prompt"], 5)]}}]}
        best = real.best_logprobs(said["prompt"], 5)
        content = [{"top_logprobs": [{"token": name, "logprob": value} for name, value in best.items()]}]
        return 200, {"usage": {"prompt_tokens": len(prompt)}, "choices": [{"logprobs": {"content": content}}]}

    with fake(answer) as address:
        for said["prompt"], expected in ((prompt, "it is ours for thinking or"), (other, "it is none of them")):
            sentence = chat_sentence(ServedModel(address, "x"), tokenizer, "preview", names, 0.01)
            assert expected in sentence


def test_unknown_tokens_are_one_line(place):
    answer = {"choices": [{"logprobs": {"top_logprobs": [{"\ufffd": -0.1}]}}]}
    with fake(lambda *_: (200, answer)) as address, pytest.raises(ValueError, match="tokens that are not the model's"):
        verify_serving(ServedModel(address, "x"), str(place / "base"), LoadOptions(), 0.1)


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (400, {"error": {"message": "no\nlogprobs"}}, r"answered 400: .*no"),
        (200, {"choices": [{"logprobs": None}]}, "returned no log-probabilities for logprobs: 5"),
        (200, {"choices": []}, "returned no log-probabilities"),
        (200, {"choices": [{"logprobs": {"top_logprobs": [{}]}}]}, "returned no log-probabilities"),
        (200, {"choices": [{"logprobs": {"top_logprobs": [{"a": float("nan")}]}}]}, "returned no log-probabilities"),
        (200, [], "returned no log-probabilities"),
    ],
)
def test_useless_answers_are_one_line(place, status, answer, message):
    with fake(lambda *_: (status, answer)) as address, pytest.raises(ValueError, match=message) as error:
        verify_serving(ServedModel(address, "x"), str(place / "base"), LoadOptions(), 0.1)
    assert "\n" not in str(error.value)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/v1/completions cannot be reached"):
        ServedModel("http://127.0.0.1:9", "x").best_logprobs([0], 5)


@pytest.mark.parametrize(
    ("base", "adapter", "served"),
    [(0.0, 0.5, BASE), (0.5, 0.0, ADAPTER), (0.05, 0.06, None), (0.5, 0.4, None), (0.0, 0.0, None), (0.05, 0.11, BASE)],
)
def test_distances_decide(base: float, adapter: float, served: str | None):
    assert judge({BASE: base, ADAPTER: adapter}, 0.1).served == served


def test_command_line(place, url):
    words = ["verify-serving", url, place / "base", "--adapter", place / "adapter", "--tolerance", "0.02"]
    wrong = seektune(*words, "--served-model-name", "base")
    assert (wrong.returncode, "serves the base" in wrong.stdout) == (1, True), wrong.stderr
    assert seektune("verify-serving", "127.0.0.1:8000", place / "base").returncode == 2
