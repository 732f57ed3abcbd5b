"""A document in a packed row has exactly the logits, loss and gradients that it has alone, including MTP.

In float64, sums in another order agree to 1e-12, and no near-tie of a top-k flips.
"""

import pytest
import torch
from torch import Tensor

from seektune.model.causal_lm import DeepseekV4ForCausalLM

LENGTHS = (1, 3, 4, 5, 127, 128, 129, 300)

ROWS = {
    "ascending": LENGTHS,
    "descending": LENGTHS[::-1],
    "windows not aligned with the row": (3, 300, 1, 129, 5, 127, 4, 128),
    "padding between and after": (-2, 129, -1, 4, -130, 127, 1, -3, 300, 5, -1, 128, 3, -67),
}
"""Lengths of documents in a row; a negative length is padding."""

TOLERANCE = 1e-10


@pytest.fixture(scope="module", params=["plain", "released"])
def model(request, toy_model) -> DeepseekV4ForCausalLM:
    return toy_model(numerics=request.param)


@pytest.fixture(scope="module")
def sequences(toy_config) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {length: torch.randint(toy_config().vocab_size, (length,), generator=generator) for length in LENGTHS}


@pytest.fixture(scope="module")
def alone(model, sequences) -> dict[int, tuple[Tensor, Tensor]]:
    """Main and MTP logits of each document in a row of its own."""
    with torch.no_grad():
        outputs = {length: model(sequence[None], mtp=True) for length, sequence in sequences.items()}
    return {length: (out.logits[0], out.mtp_logits[0]) for length, out in outputs.items()}


def pack(row: tuple[int, ...], sequences: dict[int, Tensor]) -> tuple[Tensor, Tensor, dict[int, slice]]:
    """Tokens and document numbers `[1, T]`, and the slice of each document. Padding holds ordinary tokens."""
    tokens, documents, places, start = [], [], {}, 0
    for number, length in enumerate(row):
        size = abs(length)
        real = length > 0
        tokens.append(sequences[length] if real else torch.randint(60, (size,)))
        # document numbers need not ascend; only adjacent ones must differ
        documents.append(torch.full((size,), 1 + 7 * number % 5 + 10 * (number % 2) if real else 0))
        if real:
            places[length] = slice(start, start + size)
        start += size
    return torch.cat(tokens)[None], torch.cat(documents)[None], places


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@torch.no_grad()
def test_packed_document_has_the_logits_it_has_alone(model, sequences, alone, row):
    tokens, documents, places = pack(row, sequences)
    out = model(tokens, documents=documents, mtp=True)
    assert set(places) == set(LENGTHS)
    for length, place in places.items():
        main, mtp = alone[length]
        assert (out.logits[0, place] - main).abs().max() < TOLERANCE, length
        if length > 1:
            inside = slice(place.start, place.stop - 1)
            assert (out.mtp_logits[0, inside] - mtp).abs().max() < TOLERANCE, length


@torch.no_grad()
def test_logits_differ_without_document_numbers(model, sequences, alone):
    tokens, _, places = pack(ROWS["ascending"], sequences)
    logits = model(tokens).logits[0, places[300]]
    assert (logits - alone[300][0]).abs().amax(dim=-1).median() > 1e-2


@pytest.mark.slow
def test_packed_row_has_the_loss_and_gradients_of_its_documents(toy_model, sequences):
    chosen = (128, 1, 5, 129, 3)
    model = toy_model()
    tokens, documents, _ = pack((128, -3, 1, 5, 129, 3, -2), sequences)
    out = model(tokens, labels=tokens, documents=documents, mtp=True, num_items_in_batch=1)
    (out.loss + 0.1 * out.mtp_loss).backward()
    packed = {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}
    model.zero_grad()
    loss = mtp_loss = 0.0
    for length in chosen:
        sequence = sequences[length][None]
        part = model(sequence, labels=sequence, mtp=True, num_items_in_batch=1)
        (part.loss + 0.1 * part.mtp_loss).backward()
        loss, mtp_loss = loss + part.loss.item(), mtp_loss + part.mtp_loss.item()
    assert out.loss.item() == pytest.approx(loss, rel=1e-10)
    assert out.mtp_loss.item() == pytest.approx(mtp_loss, rel=1e-10)
    alone = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    assert packed.keys() == alone.keys()
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.slow
@torch.no_grad()
def test_packing_in_fp32(toy_model, sequences):
    model = toy_model(torch.float32)
    tokens, documents, places = pack(ROWS["padding between and after"], sequences)
    out = model(tokens, documents=documents, mtp=True)
    for length, place in places.items():
        reference = model(sequences[length][None], mtp=True)
        assert (out.logits[0, place] - reference.logits[0]).abs().amax(dim=-1).median() < 1e-4
        if length > 1:
            mtp = out.mtp_logits[0, place.start : place.stop - 1]
            assert (mtp - reference.mtp_logits[0]).abs().amax(dim=-1).median() < 1e-4
