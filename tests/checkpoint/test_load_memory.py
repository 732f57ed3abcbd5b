"""Loading takes the memory of the model and of one tensor, measured in another process."""

from pathlib import Path

import pytest
import torch

from seektune.checkpoint import save_weights
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from tests.run_cli import RETURN_MEMORY, python

MEASURE_WHOLE = """
import sys, torch
from pathlib import Path
from seektune.model.causal_lm import DeepseekV4ForCausalLM
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
DeepseekV4ForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
before = peak()
model = DeepseekV4ForCausalLM.from_pretrained(sys.argv[2], dtype=torch.bfloat16)
print(peak() - before, sum(tensor.nbytes for tensor in model.state_dict().values()))
"""
SMALL = DeepseekV4Config.preset("tiny").replace(num_hidden_layers=2, num_hash_layers=1, compress_ratios=[0, 4, 0])
LARGE = SMALL.replace(hidden_size=512, moe_intermediate_size=512, n_routed_experts=64)
LARGEST = 4096 * 512
"""Elements of the largest single tensor on disk: embedding and head."""


MEASURE_HALF = """
import sys, torch
from pathlib import Path
from seektune.checkpoint import Shard, load_weights
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
load_weights({"norm.weight": torch.zeros(8)}, Path(sys.argv[1]))
before = peak()
experts = Shard(torch.zeros(16, 1024, 1024), (32, 1024, 1024), (16, 0, 0))
embedding = Shard(torch.zeros(8192, 1024), (16384, 1024), (8192, 0))
load_weights({"layers.0.ffn.experts.w1": experts, "embed.weight": embedding}, Path(sys.argv[2]))
print(peak() - before, experts.tensor.nbytes + embedding.tensor.nbytes)
"""


def run_script(script: str, *folders: Path) -> list[int]:
    """Run a script in another process and return the numbers that it prints."""
    result = python(RETURN_MEMORY + script, *map(str, folders))
    assert result.returncode == 0, result.stderr
    return [int(number) for number in result.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("format", ["released", "bf16", "fp32"])
def test_peak_memory_is_model_plus_one_tensor(tmp_path: Path, format: str) -> None:
    for name, config in (("small", SMALL), ("large", LARGE)):
        DeepseekV4ForCausalLM(config, dtype=torch.bfloat16).save_pretrained(tmp_path / name, format=format)
    grown, model = run_script(MEASURE_WHOLE, tmp_path / "small", tmp_path / "large")
    assert model > 250e6
    # one tensor as stored and decoded, at most four bytes per element each, and some noise
    assert model * 0.9 < grown < model + 2 * 4 * LARGEST + 12e6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("format", ["released", "bf16", "fp32"])
def test_peak_memory_of_half_a_model_is_half_plus_one_shard(tmp_path: Path, format: str) -> None:
    whole = {"layers.0.ffn.experts.w1": torch.ones(32, 1024, 1024), "embed.weight": torch.ones(16384, 1024)}
    save_weights(whole, {}, tmp_path / "large", format)
    save_weights({"norm.weight": torch.ones(8)}, {}, tmp_path / "small", format)
    grown, half = run_script(MEASURE_HALF, tmp_path / "small", tmp_path / "large")
    embedding = 4 * 8192 * 1024
    # half of the embedding as stored, the bands in which it is checked, and some noise
    assert half * 0.9 < grown < half + embedding + 16e6
