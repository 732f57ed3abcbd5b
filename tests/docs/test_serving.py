"""Runs the examples of docs/serving.md: its servers, its curl, its Python."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seektune.lora.files import save_adapter
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.patience import HUNG
from tests.places import ROOT
from tests.workflows.test_serve import asked, served

from .guides import blocks

PAGE = ROOT / "docs" / "serving.md"


@pytest.fixture
def place(tmp_path: Path, toy_model: Callable[..., DeepseekV4ForCausalLM]) -> Path:
    model = toy_model(torch.float32, vocab_size=512)
    model.save_pretrained(tmp_path / "trained")
    adapt(model, matching(model, ["attn"]), AdapterShape(rank=2, alpha=4.0))
    init_adapters(model, seed=0)
    save_adapter(model, tmp_path / "adapter")
    return tmp_path


@pytest.mark.slow
def test_serving_examples_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai", reason="openai is not installed")
    lines, (curl,) = blocks("docs/serving.md", "sh")[0].splitlines(), blocks("docs/serving.md", "sh")[1].splitlines()
    assert lines[0] == "pip install -e '.[serve]'"
    first, second = (shlex.split(line)[2:] for line in lines[1:])
    with served(*first, cwd=place) as (_, url):
        assert [model["id"] for model in asked(url, "/v1/models")["data"]] == ["trained"]
    with served(*second, cwd=place) as (_, url):
        for example in blocks("docs/serving.md", "python"):
            exec(compile(example.replace("http://127.0.0.1:8000", url), str(PAGE), "exec"), {})
            assert capsys.readouterr().out
        if shutil.which("curl"):
            words = shlex.split(curl.replace("http://127.0.0.1:8000", url))
            said = subprocess.run(words, capture_output=True, text=True, timeout=HUNG, check=True).stdout
            assert json.loads(said)["model"] == "trained"


def test_documented_limits_match_the_code() -> None:
    from seektune.generate.answer_grammar import LARGEST_MULTIPLE, MOST_CHARACTERS, MOST_LEVELS, MOST_REPEATS
    from seektune.generate.grammar import MOST_GRAMMARS
    from seektune.generate.prefix_cache import MOST_PREFIXES
    from seektune.serve.body import MOST_MARKS
    from seektune.serve.connections import MOST_CONNECTIONS
    from seektune.serve.limits import Limits

    text, limits = PAGE.read_text(encoding="utf-8"), Limits()
    for shown in (
        f"at most {limits.max_model_len} |",
        f"decoded together | {limits.max_num_seqs} |",
        f"that wait | {limits.max_queued_requests} |",
        f"waiting included | {limits.request_timeout:g} |",
        f"in a request | {MOST_MARKS:,} |",
        f"at most {MOST_CONNECTIONS} |",
        f"each process and model | {limits.prefix_cache / 1e9:g} |",
        f"({limits.prefix_cache / 1e9:g} GB) and {MOST_PREFIXES} prefixes",
        f"size of a request | {limits.max_body // 2**20} MiB |",
        f"part of the response | {limits.client_timeout:g} s |",
        f"with the last {MOST_GRAMMARS};",
        f"{MOST_CHARACTERS // 2**10} KiB or {MOST_LEVELS} levels",
        f"above {LARGEST_MULTIPLE:,}, regular expressions that repeat something more than {MOST_REPEATS:,} times",
    ):
        assert shown in text
