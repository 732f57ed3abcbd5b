"""`plan --serve`: its bytes are those that loaders and engines hold, and its bounds grow with what they rest on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.generate.session import LoadOptions
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.planner.hardware import known_gpu
from seektune.workflows.plan_serving import ServingOptions, plan_serving, take_plan
from tests.run_cli import seektune

H100 = known_gpu("h100-80gb", 1)


@pytest.fixture(scope="module")
def folder(toy_model, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("weights") / "released"
    toy_model(torch.float32, moe_intermediate_size=32).save_pretrained(place, "released")
    return place


def held_bytes(model: torch.nn.Module) -> int:
    return sum(x.nbytes for x in model.state_dict().values())


@pytest.mark.parametrize("quantized", [False, True])
def test_weight_bytes_are_those_of_the_loader(folder: Path, quantized: bool) -> None:
    plan = take_plan(str(folder), H100, ServingOptions(quantized), torch.float32)
    assert plan.weight_bytes == held_bytes(LoadOptions("fp32", quantized=quantized).read(str(folder)))


@pytest.mark.parametrize(("longest", "lengths"), [(600, (3, 40)), (600, (270, 30)), (3000, (5, 600))])
def test_cache_bytes_are_those_of_the_engine(folder: Path, toy_model, longest: int, lengths: tuple[int, ...]) -> None:
    """Sequences within the first capacity and beyond it."""
    model: DeepseekV4ForCausalLM = toy_model(torch.float32, moe_intermediate_size=32)
    plan = take_plan(str(folder), H100, ServingOptions(max_model_len=longest), torch.float32)
    engine = DecodeEngine(model, longest=longest)
    engine.add([Request([5] * length, 9, GREEDY) for length in lengths])
    engine.step()
    assert engine.cache_bytes == len(lengths) * plan.model.row_bytes(max(lengths))


def test_bytes_per_token_are_what_a_grown_cache_takes_more(folder: Path) -> None:
    for longest in (2**11, 2**14):  # without and with an indexer
        plan = take_plan(str(folder), H100, ServingOptions(max_model_len=longest), torch.float32)
        grown = plan.model.row_bytes(longest) - plan.model.row_bytes(longest // 2)
        assert plan.token_bytes == grown / (longest // 2)


def test_experts_are_spread_and_bounds_are_ordered() -> None:
    many = take_plan("flash", known_gpu("h100-80gb", 8), ServingOptions(quantized=True))
    two = take_plan("flash", known_gpu("h100-80gb", 8), ServingOptions(quantized=True, ep_size=2))
    experts = sum(x.numel * x.size for x in many.model.weights.all if x.expert)
    assert two.weight_bytes - many.weight_bytes == experts // 2 - experts // 8
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
    assert not plan_serving(str(folder), replace(H100, memory=2 * 10**9), ServingOptions())
    assert "does not fit" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--serve nothing: no such folder.* presets are .*flash"):
        take_plan("nothing", H100, ServingOptions())
