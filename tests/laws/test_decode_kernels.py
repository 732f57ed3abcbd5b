"""Training, evaluation and validation do not depend on a C++ compiler: only the decode engine uses CPU kernels."""

from collections.abc import Callable

import pytest
import torch

from seektune.evaluate.multiple_choice import ChoicePrompt, choice_likelihoods
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.kernels import cpu
from seektune.kernels.cpu.library import library
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.sequence import Batch

PROMPTS = [[5, 9, 2, 7], [1, 60, 33, 8, 4, 40, 11], [3]]
REQUESTS = [Request(prompt, 6, GREEDY) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def model(toy_model: Callable[..., DeepseekV4ForCausalLM]) -> DeepseekV4ForCausalLM:
    return toy_model(torch.float32)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the CPU kernels that ran."""
    names: list[str] = []
    call = cpu.call

    def record(name: str, *rest: object) -> None:
        names.append(name)
        call(name, *rest)

    monkeypatch.setattr(cpu, "call", record)
    return names


def batch() -> Batch:
    tokens = torch.tensor([PROMPTS[0]])
    return Batch(tokens, tokens.clone(), torch.ones_like(tokens))


def generate(model: DeepseekV4ForCausalLM, cpu_kernels: bool) -> list[list[int]]:
    sequences: list[list[int]] = [[] for _ in REQUESTS]
    for token in DecodeEngine(model, REQUESTS, cpu_kernels=cpu_kernels).tokens():
        sequences[token.request].append(token.id)
    return sequences


def train(model: DeepseekV4ForCausalLM) -> None:
    one = batch()
    model(one.tokens, labels=one.labels, mtp=True).loss.backward()


def call_with_cache(model: DeepseekV4ForCausalLM) -> None:
    with torch.inference_mode():
        model(torch.tensor([PROMPTS[0]]), cache=model.new_cache(1, 8))


def answer_for_evaluation(model: DeepseekV4ForCausalLM) -> None:
    list(DecodeEngine(model, REQUESTS, cpu_kernels=False).tokens())


def score_choices(model: DeepseekV4ForCausalLM) -> None:
    choice_likelihoods(model, [ChoicePrompt([5, 9], [[2], [7, 8]])], 64)


@pytest.mark.parametrize(
    "work",
    [train, lambda model: model.score(batch()), call_with_cache, answer_for_evaluation, score_choices],
    ids=["train", "score", "cache", "answers", "choices"],
)
def test_no_cpu_kernel_runs_in_training_and_evaluation(model, used: list[str], work) -> None:
    work(model)
    assert used == []


def test_decoding_with_cpu_kernels_gives_the_same_greedy_tokens(model, used: list[str]) -> None:
    if library() is None:
        pytest.skip("no C++ compiler here")
    expected = generate(model, cpu_kernels=False)
    assert used == []
    assert generate(model, cpu_kernels=True) == expected
    assert {"sparse_attention", "expert_mlp", "hyper_read", "norm_rope"} <= set(used)
