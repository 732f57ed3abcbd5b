"""Exact parameter counts from the config, compared with the released tensor tables."""

import json
import lzma
from math import prod
from pathlib import Path

import pytest

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.count import count_parameters


@pytest.mark.parametrize("preset", ["flash", "flash-base"])
def test_flash_parameter_counts(preset):
    count = count_parameters(DeepseekV4Config.preset(preset))
    assert count.main == 284_332_240_471
    assert count.mtp == 6_610_048_891
    assert round(count.active / 1e9, 1) == 13.3
    assert count.table_entries == 3 * 129_280 * 6


@pytest.mark.parametrize(
    ("preset", "main", "stages"),
    [
        ("flash-0731", 284_334_567_511, 19_845_850_983),
        pytest.param("pro-0813", 1_572_999_528_803, 77_498_408_103, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts_with_dspark_stages(preset, main, stages):
    """As published; the publisher counts the tables of hash gates among the main parameters."""
    count = count_parameters(DeepseekV4Config.preset(preset))
    assert count.main + count.table_entries == main
    assert count.mtp == stages


def test_pro_parameter_counts():
    count = count_parameters(DeepseekV4Config.preset("pro"))
    assert round(count.main / 1e9, 1) == 1573.0
    assert round(count.mtp / 1e9, 1) == 25.8
    assert round(count.active / 1e9) == 49


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "file"),
    [
        ("flash", "v4flash"),
        ("flash-0731", "v4flash0731"),
        pytest.param("pro", "v4pro", marks=pytest.mark.slow),
        pytest.param("pro-0813", "v4pro0813", marks=pytest.mark.slow),
    ],
)
def test_counts_equal_sums_over_released_tensors(released: Path, preset, file):
    table = json.loads(lzma.decompress((released / f"{file}.tensors.json.xz").read_bytes()))
    weights = {
        name: prod(tensor["shape"]) * (2 if tensor["dtype"] == "I8" else 1)
        for name, tensor in table.items()
        if tensor["dtype"] not in ("F8_E8M0", "I64")
    }
    mtp = sum(size for name, size in weights.items() if name.startswith("mtp."))
    count = count_parameters(DeepseekV4Config.preset(preset))
    assert count.mtp == mtp
    assert count.main == sum(weights.values()) - mtp
    assert count.table_entries == sum(prod(x["shape"]) for x in table.values() if x["dtype"] == "I64")


def test_counts_equal_sums_over_a_model(toy_config):
    config = toy_config()
    state = DeepseekV4ForCausalLM(config).state_dict()
    count = count_parameters(config)
    assert count.main + count.mtp == sum(x.numel() for x in state.values() if x.is_floating_point())
    assert count.table_entries == sum(x.numel() for x in state.values() if not x.is_floating_point())
    # 3 of 8 experts are active per token; the embedding is a lookup
    idle = sum(x.numel() for name, x in state.items() if ".experts.w" in name and not name.startswith("mtp.")) * 5 // 8
    assert count.active == count.main - idle - state["embed.weight"].numel()
