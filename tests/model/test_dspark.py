"""The DSpark drafter: the path with a cache gives what the definition gives, in whatever steps the text was read."""

import pytest
import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.dspark import LayerMeans
from tests.conftest import DSPARK
from tests.model import dspark_definition as definition


@pytest.fixture(scope="module")
def model(toy_model) -> DeepseekV4ForCausalLM:
    return toy_model(drafter=True, **DSPARK)


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(64, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def drafted(model: DeepseekV4ForCausalLM, texts: list[list[int]], steps: list[list[int]]):
    """The draft of each row after all but its last token was read in `steps`: tokens of each row in each step."""
    cache = model.new_cache(len(texts), 64)
    memory = model.new_draft_cache(len(texts), 64)
    done = [0] * len(texts)
    for counts in steps:
        rows = [text[at : at + count] for text, at, count in zip(texts, done, counts, strict=True)]
        width = max(counts)
        tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        means = LayerMeans(model.config.dspark_target_layer_ids)
        model.advance(tokens, cache, counts, means)
        model.remember(means.joined(), memory, counts)
        done = [at + count for at, count in zip(done, counts, strict=True)]
    assert done == [len(text) - 1 for text in texts]
    return model.draft(torch.tensor([text[-1] for text in texts]), memory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lengths", "steps"),
    [
        ([2], [[1]]),
        ([12], [[11]]),
        ([12], [[1]] * 11),
        # more than the window of 16 tokens, and rows of different lengths
        ([30, 9, 2], [[20, 8, 1], [9, 0, 0]]),
        ([40, 41], [[33, 33], [1, 2], [5, 5]]),
    ],
)
def test_cached_draft_equals_the_definition(model, lengths, steps):
    texts = [ids(length, seed) for seed, length in enumerate(lengths)]
    block = drafted(model, texts, steps)
    assert block.unary_BAV.shape == (len(texts), 5, 64)
    for row, text in enumerate(texts):
        unary, hidden = definition.draft(model, text)
        torch.testing.assert_close(block.unary_BAV[row], unary, rtol=0, atol=1e-9)
        torch.testing.assert_close(block.hidden_BAD[row], hidden, rtol=0, atol=1e-9)
    previous = torch.tensor([text[-1] for text in texts])
    for slot in range(5):
        logits = block.logits(slot, previous)
        chance = block.confidence(slot, previous)
        for row, before in enumerate(previous.tolist()):
            unary, hidden = definition.draft(model, texts[row])
            expected = definition.slot_logits(model, unary, slot, before)
            torch.testing.assert_close(logits[row], expected, rtol=0, atol=1e-9)
            assert float(chance[row]) == pytest.approx(definition.confidence(model, hidden, slot, before), abs=1e-9)
        previous = logits.argmax(-1)


def test_a_text_of_one_token_has_no_memory(model):
    block = model.draft(torch.tensor([7]), model.new_draft_cache(1, 8))
    torch.testing.assert_close(block.unary_BAV[0], definition.draft(model, [7])[0], rtol=0, atol=1e-9)


def test_the_definition_depends_on_memory_order_and_noise(model):
    """A definition that ignored one of these could not tell a wrong drafter from a right one."""
    text = ids(30, 3)
    unary, _ = definition.draft(model, text)
    swapped, _ = definition.draft(model, [*text[:20], text[21], text[20], *text[22:]])
    other_noise = model.config.replace(dspark_noise_token_id=5)
    assert (unary - swapped).abs().max() > 1e-3
    original, model.config = model.config, other_noise
    try:
        assert (unary - definition.draft(model, text)[0]).abs().max() > 1e-3
    finally:
        model.config = original
