"""Toy models for all tests: every mechanism of V4, and weights with which no mistake stays invisible."""

import gc
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config

Build = Callable[..., DeepseekV4ForCausalLM]

TOY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_hash_layers": 1,
    "num_nextn_predict_layers": 1,
    "compress_ratios": [0, 4, 128, 4, 0],
    "num_attention_heads": 4,
    "head_dim": 16,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 16,
    "o_lora_rank": 8,
    "o_groups": 2,
    "sliding_window": 16,
    "index_n_heads": 8,
    "index_head_dim": 16,
    "index_topk": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
    # low enough for the clamp of SwiGLU to bind on weights of unit scale
    "swiglu_limit": 1.5,
}


DSPARK: dict[str, Any] = {
    "compress_ratios": [0, 4, 128, 4, 0, 0, 0],
    "dspark_block_size": 5,
    "dspark_noise_token_id": 63,
    "dspark_target_layer_ids": [3, 1],
    "dspark_markov_rank": 6,
}
"""The toy config with three DSpark stages instead of the MTP block; the target layers are in no order."""


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Activations of unit scale; no norm weight of one, no bias, sink or gating factor of zero, no equal streams."""
    generator = torch.Generator().manual_seed(seed)

    def normal(x: torch.Tensor, mean: float, std: float) -> None:
        x.copy_(torch.randn(x.shape, generator=generator, dtype=torch.float64) * std + mean)

    with torch.no_grad():
        for name, x in model.state_dict().items():
            if not x.is_floating_point():
                choice = torch.rand(x.shape[0], model.config.n_routed_experts, generator=generator).argsort(1)
                x.copy_(choice[:, : x.shape[1]])
            elif name == "embed.weight":
                normal(x, 0.0, 1.0)
            elif "norm." in name:
                normal(x, 1.0, 0.2)
            elif name.endswith(".scale"):
                normal(x, 1.0, 0.3)
            elif x.dim() == 1 or name.endswith("ape"):
                normal(x, 0.0, 0.5)
            else:
                normal(x, 0.0, x.shape[-1] ** -0.5)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    """What is imported and collected lives as long as the session: the garbage collector never has to look at it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    # extension modules report objects that are alive at the interpreter's end
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """A fixture that tests share is the same whichever of them came before."""
    if fixturedef.scope != "function":
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def toy_config() -> Callable[..., DeepseekV4Config]:
    """The toy config with changes."""

    def make(**changes: Any) -> DeepseekV4Config:
        return DeepseekV4Config.preset("tiny").replace(**(TOY | changes))

    return make


@pytest.fixture(scope="session")
def toy_model(toy_config: Callable[..., DeepseekV4Config]) -> Build:
    """A randomised toy model, by default in float64: sums in another order then agree to 1e-12 and no tie flips."""

    def make(
        dtype: torch.dtype = torch.float64,
        numerics: str = "plain",
        seed: int = 0,
        drafter: bool = False,
        **changes: Any,
    ) -> DeepseekV4ForCausalLM:
        model = DeepseekV4ForCausalLM(toy_config(**changes), dtype=dtype, numerics=numerics, drafter=drafter)
        if dtype == torch.float64:
            model.double()  # also the parameters that are float32 in a model of any dtype
        randomize(model, seed)
        return model

    return make


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    """A checkpoint in the released layout with logits of the official code."""
    return Path(__file__).parent / "fixtures" / "parity"


@pytest.fixture(scope="session")
def released() -> Path:
    """Names, dtypes, shapes and shards of all tensors of the released checkpoints."""
    return Path(__file__).parent / "fixtures" / "released"


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody wrote holds NaN (floats) and the largest number (integers)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
