"""A toy model behind a server, in float64, so that no choice of other requests in the batch flips a near-tie."""

from collections.abc import Iterator

import pytest

from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.model.causal_lm import DeepseekV4ForCausalLM

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from seektune.serve.app import Served
from seektune.serve.limits import Limits

from .live import Live, live

NAME = "toy"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(512)


@pytest.fixture(scope="session")
def model(toy_model) -> DeepseekV4ForCausalLM:
    return toy_model(vocab_size=512)


@pytest.fixture(scope="session")
def other(toy_model) -> DeepseekV4ForCausalLM:
    return toy_model(vocab_size=512, seed=1)


@pytest.fixture(scope="module")
def toy(model, other, tokenizer) -> Iterator[Live]:
    limits = Limits(max_model_len=2000, max_body=2**20)
    with live(Served({NAME: model, "other": other}, tokenizer, limits)) as found:
        yield found
