"""`plan --serve`: its bytes are those that loaders and engines hold, and its bounds grow with what they rest on."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.cli.dry_run_decode import DecodeDryRun
from seektune.cli.launch_flags import LaunchFlags
from seektune.cli.plan import plan
from seektune.cli.processes import DecodeFlags
from seektune.generate import worker
from seektune.generate.cache_limit import CacheLimit, CacheUse
from seektune.generate.engine import DecodeEngine
from seektune.generate.processes import ONE_PROCESS
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.generate.session import LoadOptions
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.planner.hardware import known_gpu
from seektune.planner.memory import UPPER
from seektune.planner.serving_stage import ServingStage
from seektune.workflows.dry_run_decode import DecodeLayout, dry_run_decode
from seektune.workflows.plan_serving import ServingOptions, plan_serving, take_plan
from tests.run_cli import seektune

CASES = ((False, 1), (True, 1), (False, 2))
"""Drafts, and engines that share the memory."""
H100 = known_gpu("h100-80gb", 1)


@pytest.fixture(scope="module")
def folder(toy_model, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("weights") / "released"
    toy_model(torch.float32, moe_intermediate_size=32).save_pretrained(place, "released")
    return place


def held_bytes(model: torch.nn.Module) -> int:
    return sum(x.nbytes for x in model.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_weight_bytes_are_those_of_the_loader(folder: Path, quantized: bool) -> None:
    plan = take_plan(str(folder), H100, ServingOptions(quantized), torch.float32)
    assert plan.tightest.weight_bytes == held_bytes(LoadOptions("fp32", quantized=quantized).read(str(folder)))


@pytest.mark.parametrize(("longest", "lengths"), [(600, (3, 40)), (600, (270, 30)), (3000, (5, 600))])
def test_cache_bytes_are_those_of_the_engine(folder: Path, toy_model, longest: int, lengths: tuple[int, ...]) -> None:
    """Sequences within the first capacity and beyond it."""
    model: DeepseekV4ForCausalLM = toy_model(torch.float32, moe_intermediate_size=32)
    plan = take_plan(str(folder), H100, ServingOptions(max_model_len=longest), torch.float32)
    engine = DecodeEngine(model, longest=longest)
    engine.add([Request([5] * length, 9, GREEDY) for length in lengths])
    engine.step()
    assert engine.cache_bytes == len(lengths) * plan.tightest.model.row_bytes(max(lengths))


@pytest.mark.parametrize("length", [40, 600])
def test_as_many_sequences_with_static_steps_fit_as_the_controller_admits(
    folder: Path, monkeypatch: pytest.MonkeyPatch, toy_model, length: int
) -> None:
    """Five: a power of two of rows would be eight, for which there is room or not."""
    model: DeepseekV4ForCausalLM = toy_model(torch.float32, moe_intermediate_size=32)
    asked = ServingOptions(max_model_len=600, static_steps=True)
    row = take_plan(str(folder), H100, asked, torch.float32).tightest.model.row_bytes(length)
    for free, fit in ((17.5, 4), (18, 5), (22, 7), (24, 8), (3, 1), (2.9, 0)):
        monkeypatch.setattr(ServingStage, "free", free * row)
        plan = take_plan(str(folder), H100, asked, torch.float32)
        assert plan.sequences(length) == fit
        monkeypatch.setattr(worker, "free_bytes", lambda *_, free=free: round(free * row))
        engine = DecodeEngine(model, longest=600, memory=CacheLimit(), static_steps=True)
        if fit:
            engine.add([Request([5] * (length - 9), 9, GREEDY) for _ in range(9)])
            assert sum(1 for _ in engine.step()) == fit
        assert engine.room.tokens() >= length if fit else engine.room.tokens() < length
    with pytest.raises(ValueError, match="--cuda-graphs does not work with 2 processes; leave it out"):
        take_plan(str(folder), known_gpu("h100-80gb", 2), asked)


def test_a_length_beyond_the_positions_of_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--max-model-len \(1048577\) exceeds the model's 1048576 positions"):
        take_plan("tiny", H100, ServingOptions(max_model_len=2**20 + 1))


def test_bytes_per_token_are_what_a_grown_cache_takes_more(folder: Path) -> None:
    for longest in (2**11, 2**14):  # without and with an indexer
        plan = take_plan(str(folder), H100, ServingOptions(max_model_len=longest), torch.float32)
        grown = plan.tightest.model.row_bytes(longest) - plan.tightest.model.row_bytes(longest // 2)
        assert plan.tightest.model.token_bytes == grown / (longest // 2)


@pytest.mark.slow
def test_experts_are_spread_and_bounds_are_ordered() -> None:
    many = take_plan("flash", known_gpu("h100-80gb", 8), ServingOptions(quantized=True))
    two = take_plan("flash", known_gpu("h100-80gb", 8), ServingOptions(quantized=True, ep_size=2))
    experts = sum(x.numel * x.size for x in many.tightest.model.weights if x.expert)
    assert two.tightest.weight_bytes - many.tightest.weight_bytes == experts // 2 - experts // 8
    assert many.fits
    assert not two.fits
    assert many.sequences(1000) > many.sequences(30_000) > 0
    for running in (1, 32):
        slow, fast = many.rates(running, 4096)
        assert 0 < slow < fast
    assert many.rates(1, 30_000)[1] < many.rates(1, 1000)[1] < many.rates(8, 1000)[1]


@pytest.mark.slow
def test_the_command_prints_tables(folder: Path) -> None:
    shown = seektune("plan", "--serve", str(folder), "--gpus", "2", "--quantized")
    assert shown.returncode == 0, shown.stderr
    assert "experts over 2 processes" in shown.stdout
    assert "sequences that fit" in shown.stdout


def test_json_misfits_and_unknown_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_serving(str(folder), known_gpu("h100-80gb", 2), ServingOptions(as_json=True))
    values = json.loads(capsys.readouterr().out)
    assert (values["fits"], values["ep_size"]) == (True, 2)
    assert values["sequences"]["1024"] > 0
    assert not plan_serving(str(folder), replace(H100, memory=10**9), ServingOptions())
    assert "does not fit" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"nothing is not a folder; name one, or one of flash"):
        take_plan("nothing", H100, ServingOptions())


@pytest.mark.slow
def test_a_base_preset_has_the_formats_of_its_release() -> None:
    """Its experts are FP8, those of the others FP4; a dry run reads them the same way."""
    base, chat = (
        take_plan(name, known_gpu("h100-80gb", 8), ServingOptions(quantized=True)) for name in ("flash-base", "flash")
    )
    assert base.tightest.weight_bytes > 1.5 * chat.tightest.weight_bytes


def test_caches_have_what_the_limit_and_the_memory_leave(folder: Path) -> None:
    wide, narrow, less = (
        take_plan(str(folder), H100, ServingOptions(gpu_memory_utilization=share)).tightest for share in (1.0, 0.9, 0.5)
    )
    assert narrow.free <= 0.9 * H100.memory - narrow.weight_bytes - narrow.prefix_bytes
    assert less.free == 0.5 * H100.memory - less.weight_bytes - less.prefix_bytes
    assert wide.free == H100.memory - wide.weight_bytes - wide.work_bytes - wide.overhead(UPPER) - wide.prefix_bytes
    small = take_plan(str(folder), replace(H100, memory=8 * 10**9), ServingOptions()).tightest
    assert 0 < small.prefix_bytes < 2 * 10**9
    assert small.free == pytest.approx(3 * small.prefix_bytes, abs=8)


def test_a_dry_run_reads_the_options_of_caches(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(caches: CacheUse, engines: int = 1) -> str:
        layout = DecodeLayout(1, None, 1, "h100-80gb")
        dry_run_decode(str(folder), LoadOptions("fp32"), layout, CacheLimit(engines=engines), caches)
        return capsys.readouterr().out

    assert "400 tokens of context fit" in shown(CacheUse(longest=400))
    assert "the prefix cache 2.00 GB" in shown(CacheUse(prefix_bytes=2 * 10**9))
    assert "prefix cache" not in shown(CacheUse(prefix_bytes=2 * 10**9, speculative=True))
    assert "caches and the copies for static steps and of a batch have" in shown(CacheUse(static_steps=True))
    with pytest.raises(ValueError, match="--cuda-graphs does not work with --speculative; leave it out"):
        shown(CacheUse(static_steps=True, speculative=True))
    with pytest.raises(ValueError, match="--cuda-graphs does not work with --numerics serving; leave it out"):
        ONE_PROCESS.check_static_steps(True, speculative=False, numerics="serving")
    assert len({shown(CacheUse(longest=400, speculative=drafts), engines) for drafts, engines in CASES}) == len(CASES)


def test_torch_is_told_before_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    found: list[str | None] = []

    def read() -> tuple[LoadOptions, CacheLimit, CacheUse]:
        found.append(os.environ.get("TORCH_CPP_LOG_LEVEL"))
        raise ValueError("read")

    with pytest.raises(ValueError, match="read"):
        DecodeDryRun(enabled=True, world_size=1).run("tiny", read, DecodeFlags(LaunchFlags()))
    assert found == ["ERROR"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"serve": "flash", "search": True}, "--serve plans no training; leave out"),
        ({"serve": "flash", "tokens": 1e9}, "--serve plans no training; leave out"),
        ({"serve": "flash", "html": Path("x.html")}, "--serve plans no training; leave out"),
        ({"serve": "flash", "price": 2.0}, "--serve plans no training; leave out"),
        ({"args": ["tiny"], "quantized": True}, "--quantized, --ep, --pp, .* need --serve"),
        ({"args": ["tiny"], "ep": 2}, "need --serve"),
        ({"args": ["tiny"], "cuda_graphs": True}, "need --serve"),
        ({"args": ["tiny"], "pp": 2}, "need --serve"),
        ({"args": ["tiny"], "max_model_len": 9}, "need --serve"),
        ({"args": ["tiny"], "gpu_memory_utilization": 0.5}, "need --serve"),
    ],
)
def test_flags_of_the_other_plan_are_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(**words)
