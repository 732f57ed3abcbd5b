"""The reference model of preference objectives: adapters off, or sums that were computed once."""

import re

import pytest
import torch

from seektune.checkpoint.formats import FORMATS
from seektune.lora.build import add_adapters
from seektune.lora.config import LoraConfig
from seektune.lora.state import adapter_state
from seektune.model.objective import TokenLogprobs
from seektune.model.quantized import quantize_modules
from seektune.parallel.cached_reference import CachedReference, DocumentSums
from seektune.parallel.model import ParallelModel
from seektune.parallel.reference import ModelReference
from seektune.sequence import IGNORE_INDEX, REFERENCE, Batch
from tests.conftest import Build


@pytest.fixture
def batch() -> Batch:
    """Two packed rows of documents of 1 to 20 tokens, of which some are not taught, and padding."""
    dice = torch.Generator().manual_seed(1)
    documents = torch.tensor([[1] * 20 + [2] * 12, [1] * 1 + [2] * 14 + [3] * 9 + [4] * 3 + [0] * 5])
    tokens = torch.randint(64, documents.shape, generator=dice)
    taught = (torch.rand(documents.shape, generator=dice) < 0.6) & (documents > 0)
    return Batch(tokens, torch.where(taught, tokens, IGNORE_INDEX), documents)


LORA = {
    "plain": {"targets": ["attn", "ffn.experts", "ffn.shared_experts", "embed", "head"]},
    "dora": {"targets": ["attn", "ffn.shared_experts"], "dora": True},
    "rounded": {"targets": ["attn", "ffn.experts"], "merge_into": "released"},
}


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", LORA)
def test_adapters_off_is_the_model_before_it_had_any(
    toy_model: Build, batch: Batch, kind: str, quantized: bool
) -> None:
    model = toy_model(torch.float32, moe_intermediate_size=32)
    if quantized:
        quantize_modules(model, FORMATS["released"].kind)
    before = ParallelModel.alone(model).logprobs(batch)
    add_adapters(model, LoraConfig.model_validate(LORA[kind]), mtp=False, seed=0)
    for name, x in adapter_state(model).items():
        if name.endswith(".B"):
            torch.nn.init.normal_(x, std=0.3)
    adapted = ParallelModel.alone(model)
    assert not torch.allclose(adapted.logprobs(batch), before, atol=1e-3), "the adapters must count"
    reference = ModelReference(adapted)
    for found in (reference.own(batch), reference.shared(batch)):
        assert torch.equal(found.columns[REFERENCE][:, 1:], before[:, :-1])
    assert not torch.allclose(adapted.logprobs(batch), before, atol=1e-3), "they are on again"


def test_cached_sums_are_those_of_the_documents(toy_model: Build, batch: Batch) -> None:
    model = ParallelModel.alone(toy_model(torch.float32))
    reference = CachedReference()
    sums = DocumentSums.of(batch, model.logprobs(batch))
    assert len(sums.digests) == 5, "a document of one token has none that is predicted"
    reference.found = DocumentSums.joined([sums, sums])
    whole = TokenLogprobs.given(model.logprobs(batch), reference.own(batch))
    policy = whole.document_sums(whole.values_N)
    assert torch.equal(whole.document_sums(whole.columns[REFERENCE]), policy)
    other = batch.tokens.clone()
    other[0, 3] += 1
    with pytest.raises(ValueError, match=re.escape("log-probability of a document is missing: the data is not what")):
        reference.own(Batch(other, batch.labels, batch.documents))
    row = reference.own(batch.share(1, 2))
    assert torch.equal(row.columns[REFERENCE], reference.own(batch).columns[REFERENCE][1:])
