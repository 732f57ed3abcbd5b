"""Logits of a released checkpoint, compared with those of the official code in fp32.

Row 7 of `tid2eid` lists one expert twice. The official code adds an expert's output with `y[rows] += ...`, which writes
a repeated row once, so the expert counts once although its weight is in the normalizing sum twice.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from seektune.model.causal_lm import DeepseekV4ForCausalLM

LENGTHS = (1, 3, 37, 131, 300)
TAGS = ("plain", "released")


@pytest.fixture(scope="module")
def expected(parity_folder: Path) -> dict[str, Tensor]:
    return load_file(parity_folder / "expected.safetensors")


@pytest.fixture(scope="module")
def models(parity_folder: Path) -> dict[str, DeepseekV4ForCausalLM]:
    return {tag: DeepseekV4ForCausalLM.from_pretrained(parity_folder, numerics=tag) for tag in TAGS}


def check(tag: str, found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    difference = (found - expected).abs()
    positions = difference.amax(dim=-1).flatten()
    if tag == "plain":
        assert difference.median() <= 1e-5
        assert (positions <= 1e-3).double().mean() >= 0.98
    else:
        # a value near a rounding boundary may round differently, which affects every later position
        assert (positions <= 1e-2).double().mean() >= 0.95


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("tag", TAGS)
@torch.no_grad()
def test_prefill_logits_match_official(models, expected, tag, length):
    found = models[tag](expected["input_ids"][:, :length]).logits
    check(tag, found, expected[f"{tag}.logits.{length}"])


@pytest.mark.parametrize("tag", TAGS)
@torch.no_grad()
def test_mtp_logits_match_official(models, expected, tag):
    check(tag, models[tag](expected["input_ids"], mtp=True).mtp_logits, expected[f"{tag}.mtp_logits"])


@pytest.mark.parametrize("tag", TAGS)
@torch.no_grad()
def test_logits_match_official_decoding(models, expected, tag):
    found = models[tag](expected["input_ids"]).logits[:, 129:]
    check(tag, found, expected[f"{tag}.decode"])


@torch.no_grad()
def test_plain_and_released_numerics_differ(models, expected):
    plain, released = (models[tag](expected["input_ids"]).logits for tag in TAGS)
    assert (plain - released).abs().amax(dim=-1).median() > 1e-3


@torch.no_grad()
def test_inputs_use_the_table_row_with_a_repeated_expert(models, expected):
    table = models["plain"].layers[0].ffn.gate.tid2eid
    twice = [row for row in range(len(table)) if len(table[row].unique()) < table.shape[1]]
    assert twice == [7]
    assert (expected["input_ids"] == 7).any()


@pytest.mark.slow
@torch.no_grad()
def test_bf16_model_is_close_to_fp32(parity_folder, expected):
    model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, dtype=torch.bfloat16)
    logits = model(expected["input_ids"]).logits
    reference = expected["plain.logits.300"]
    assert logits.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(logits, reference, dim=-1).median() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_cached_decoding_matches_official(models, expected, tag):
    model, ids = models[tag], expected["input_ids"]
    cache = model.new_cache(1, ids.shape[1])
    logits = [model(ids[:, :130], cache=cache).logits[:, -1:]]
    logits += [model(ids[:, t : t + 1], cache=cache).logits for t in range(130, ids.shape[1])]
    check(tag, torch.cat(logits, dim=1), expected[f"{tag}.decode"])
    if tag == "plain":
        assert (torch.cat(logits, dim=1) - model(ids).logits[:, 129:]).abs().max() < 1e-4
