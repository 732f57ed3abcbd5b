from dataclasses import asdict
from inspect import signature

import pytest
import torch

from seektune.generate.sampling_params import Sampling
from seektune.model.causal_lm import DeepseekV4ForCausalLM


def test_defaults_are_those_of_requests():
    defaults = {name: each.default for name, each in signature(DeepseekV4ForCausalLM.generate).parameters.items()}
    assert defaults | asdict(Sampling()) == defaults


@pytest.mark.slow
@torch.no_grad()
def test_generate_matches_greedy_full_forwards(toy_model):
    model = toy_model(eos_token_id=63)
    ids = torch.randint(64, (2, 7))
    found = model.generate(ids, max_new_tokens=9, temperature=0)
    expected = ids
    for _ in range(9):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert not (expected[:, 7:] == 63).any()
    assert torch.equal(found, expected)
    assert torch.equal(model.generate(ids, max_new_tokens=9, temperature=0, speculative=True), expected)
    assert found.dtype == torch.int64


@pytest.mark.slow
def test_ended_row_is_filled_with_eos(toy_model):
    free = toy_model(eos_token_id=63)
    ids = torch.randint(64, (2, 7))
    whole = free.generate(ids, max_new_tokens=9, temperature=0)
    eos = int(whole[0, 9])
    model = toy_model(eos_token_id=eos)
    found = model.generate(ids, max_new_tokens=9, temperature=0)
    assert not (whole[0, 7:9] == eos).any()
    assert found[0].tolist() == [*whole[0, :10].tolist(), *[eos] * (found.shape[1] - 10)]


@pytest.mark.slow
def test_each_row_has_its_own_seed(toy_model):
    model = toy_model()
    ids = torch.randint(64, (1, 7)).expand(2, -1)
    first, again, next_seed = (model.generate(ids, max_new_tokens=6, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[1], next_seed[0])


def test_invalid_arguments_are_refused(toy_model):
    model = toy_model()
    ids = torch.ones(1, 2, dtype=torch.int64)
    for arguments, message in (
        ({"temperature": -1}, "temperature must be 0 or more, not -1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, not 0"),
        ({"input_ids": ids + 99}, "outside the vocabulary"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**{"input_ids": ids, "max_new_tokens": 2, **arguments})
