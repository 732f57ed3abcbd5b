"""docs/talk-to-your-model.md: its commands run on two processes of tiny size, and its examples against its server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from seektune import cli
from seektune.data.tokenizer import load_tokenizer
from seektune.lora.files import save_adapter
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.workflows import serve
from tests.run_cli import seektune, worker_processes

from .guides import Command, blocks, commands

PAGE = "docs/talk-to-your-model.md"
SHOWN = [each for each in commands(PAGE) if not each.hardware]
ON_TWO = "--nproc-per-node=2"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, toy_model: Callable[..., DeepseekV4ForCausalLM]) -> Path:
    made = tmp_path_factory.mktemp("talk")
    model = toy_model(torch.float32, vocab_size=512)
    model.save_pretrained(made / "trained")
    adapt(model, ["layers.1.ffn.experts.w1", "layers.2.attn.wq_a"], AdapterShape(rank=2, alpha=4.0))
    init_adapters(model, seed=0)
    save_adapter(model, made / "adapter")
    (made / "notes.txt").write_text("The man picks up the ball and throws it. " * 9, encoding="utf-8")
    return made


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def words_of(command: Command, place: Path) -> list[str]:
    """What a process of a launcher gets, with files in the place."""
    files = {name: str(place / name) for name in ("trained", "adapter", "notes.txt")}
    return [files.get(word, word) for word in command.words[1:] if word != ON_TWO]


@pytest.mark.slow
def test_the_commands_run_on_two_processes(place: Path) -> None:
    pairs = [each for each in SHOWN if ON_TWO in each.words and each.words[1] != "serve"]
    assert [each.words[1] for each in pairs] == ["generate", "chat", "eval"]
    said = []
    for command in pairs:
        done = worker_processes(*words_of(command, place), world=2)
        assert [each.returncode for each in done] == [0, 0], done
        said.append(done[0].stdout)
    assert said[0].strip()
    assert "/system TEXT" in said[1]
    assert "perplexity" in said[2]


@pytest.mark.slow
def test_the_plans_of_the_page_are_what_it_says(place: Path) -> None:
    flash, tiny = (seektune(*words_of(each, place)).stdout for each in SHOWN if each.words[1] == "plan")
    assert "weights 27.84 GB of 80 GB, caches of running sequences 42.16 GB; 6.88 kB per token" in flash
    assert "experts over 2 processes" in tiny


@pytest.mark.slow
def test_the_examples_talk_to_the_server_of_the_page(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai", reason="openai is not installed")
    pytest.importorskip("anthropic", reason="anthropic is not installed")
    from seektune.serve.app import Served
    from tests.serve.live import live

    asked: list[Any] = []
    monkeypatch.setattr(serve, "serve", lambda *given: asked.append(given))
    (command,) = [each for each in SHOWN if each.words[1] == "serve"]
    typer.main.get_command(cli.app)(words_of(command, place), standalone_mode=False)()
    model, reading, service, _ = asked[0]
    assert (service.port, service.api_key) == (8000, "secret")
    models = serve._models(model, reading, service)
    with live(Served(models, load_tokenizer(512), key=service.api_key)) as found:
        for example in blocks(PAGE, "python"):
            exec(compile(example.replace("http://127.0.0.1:8000", found.url), PAGE, "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:2]] == ["trained", "adapter"]
    cached, _, tokens, *_ = said[2].split()
    assert 0 < int(cached) < int(tokens)
