"""The loss of DSpark stages equals its formulas, one anchor and slot at a time; gradients reach the stages alone."""

import math

import pytest
import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.dspark import LayerMeans
from seektune.model.dspark_loss import (
    Anchors,
    Drafting,
    DraftLosses,
    DraftRows,
    backward_in_chunks,
    choose_anchors,
    draft_losses,
)
from seektune.model.transformer import TokenRows
from seektune.sequence import IGNORE_INDEX, SequenceLayout
from tests.conftest import DSPARK
from tests.model import dspark_definition as definition


@pytest.fixture(scope="module")
def model(toy_model) -> DeepseekV4ForCausalLM:
    return toy_model(drafter=True, **DSPARK)


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(64, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def drafting(model, tokens: torch.Tensor, labels: torch.Tensor, documents: torch.Tensor) -> Drafting:
    rows = TokenRows(tokens, SequenceLayout.from_documents(documents))
    with torch.no_grad():
        means = LayerMeans(model.config.dspark_target_layer_ids)
        hidden = model.hidden(model.backbone(rows, means=means).streams_BTSD)
    text = DraftRows(tokens, labels, rows.layout, means.joined(), hidden)
    return Drafting(list(model.mtp), model.embed, model.head.weight, model.config, text)


@torch.no_grad()
def by_formulas(model, text: list[int], taught: set[int], anchor: int) -> tuple[float, float, float]:
    """Cross-entropy, half the distance and confidence loss of the draft from one anchor, weighted over its slots."""
    unary, hidden = definition.draft(model, text[: anchor + 1])
    teacher = model(torch.tensor([text])).logits[0].softmax(-1)
    total = [0.0, 0.0, 0.0]
    for slot in range(model.config.dspark_block_size):
        place = anchor + slot
        if place + 1 >= len(text) or place + 1 not in taught:
            continue
        drafted = definition.slot_logits(model, unary, slot, text[place]).softmax(-1)
        distance = float((drafted - teacher[place]).abs().sum())
        accepted = 1 - distance / 2
        chance = definition.confidence(model, hidden, slot, text[place])
        weight = math.exp(-slot / model.config.dspark_block_size)
        total[0] -= weight * math.log(float(drafted[text[place + 1]]))
        total[1] += weight * distance / 2
        total[2] -= weight * (accepted * math.log(chance) + (1 - accepted) * math.log(1 - chance))
    return total[0], total[1], total[2]


def gradients(model, found: DraftLosses) -> dict[str, torch.Tensor]:
    """By parameter, with what was accumulated before; none is left."""
    found.loss.backward()
    given = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return given


@pytest.mark.slow
def test_the_loss_equals_its_formulas(model):
    """Two documents in one row, and a shorter one in another."""
    first, second, third = ids(30, 1), ids(11, 2), ids(20, 3)
    tokens = torch.tensor([[*first, *second], [*third, *[0] * 21]])
    documents = torch.tensor([[1] * 30 + [2] * 11, [1] * 20 + [0] * 21])
    labels = tokens.masked_fill(documents == 0, IGNORE_INDEX)
    labels[0, :4] = labels[1, 7] = IGNORE_INDEX
    texts = [(0, 0, first, set(range(4, 30))), (0, 30, second, set(range(11))), (1, 0, third, set(range(20)) - {7})]
    places = [(row, start + at, text, taught, at) for row, start, text, taught in texts for at in range(len(text) - 1)]
    anchors = Anchors(torch.tensor([p[0] for p in places]), torch.tensor([p[1] for p in places]))
    found = draft_losses(drafting(model, tokens, labels, documents), anchors, divisor=7.0)
    wanted = [sum(parts) / 7 for parts in zip(*(by_formulas(model, *p[2:]) for p in places), strict=True)]
    assert float(found.cross_entropy) == pytest.approx(wanted[0], rel=1e-6)
    assert float(found.distance) == pytest.approx(wanted[1], rel=1e-6)
    assert float(found.confidence) == pytest.approx(wanted[2], rel=1e-6)
    assert float(found.loss.detach()) == pytest.approx(0.1 * wanted[0] + 1.8 * wanted[1] + wanted[2], rel=1e-6)


def test_gradients_reach_the_stages_alone_and_all_of_them(model):
    tokens = torch.tensor([ids(40, 5)])
    documents = torch.ones_like(tokens)
    anchors = choose_anchors(SequenceLayout.from_documents(documents), tokens, 12, seed=1)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for parameter in [*model.embed.parameters(), *model.head.parameters()]:
        parameter.requires_grad_(False)
    found = gradients(model, draft_losses(drafting(model, tokens, tokens, documents), anchors, divisor=7.0))
    touched = {name for name, x in found.items() if bool(x.abs().sum())}
    assert touched == {name for name, x in model.named_parameters() if name.startswith("mtp.")}


@pytest.mark.parametrize(("anchors", "chunks"), [(0, 1), (20, 3), (64, 2), (70, 2)])
def test_losses_and_gradients_in_chunks_are_those_of_one_graph(model, anchors: int, chunks: int):
    """Also where other processes have more anchors, and where there are none."""
    tokens = torch.tensor([ids(50, 6), ids(50, 7)])
    made = drafting(model, tokens, tokens, torch.ones_like(tokens))
    chosen = choose_anchors(made.rows.layout, tokens, anchors, seed=2)
    plain = draft_losses(made, chosen, divisor=7.0)
    expected = gradients(model, plain)
    found = backward_in_chunks(made, chosen, divisor=7.0, chunks=chunks)
    for name, part in vars(found).items():
        torch.testing.assert_close(part, vars(plain)[name])
    every = gradients(model, found)
    assert every.keys() == expected.keys()
    for name, gradient in every.items():
        torch.testing.assert_close(gradient, expected[name])


def test_anchors_are_where_something_is_taught():
    tokens = torch.arange(20).view(2, 10)
    documents = torch.tensor([[1] * 6 + [2] * 4, [1] * 8 + [0] * 2])
    labels = tokens.clone()
    labels[0, :3] = IGNORE_INDEX
    layout = SequenceLayout.from_documents(documents)
    every = choose_anchors(layout, labels, 100, seed=0)
    found = set(zip(every.row_N.tolist(), every.place_N.tolist(), strict=True))
    assert found == {(0, 2), (0, 3), (0, 4), (0, 6), (0, 7), (0, 8), *((1, t) for t in range(7))}
    some = choose_anchors(layout, labels, 5, seed=0)
    again = choose_anchors(layout, labels, 5, seed=0)
    other = choose_anchors(layout, labels, 5, seed=1)
    assert len(some.row_N) == 5
    assert torch.equal(some.place_N, again.place_N)
    assert not (torch.equal(some.place_N, other.place_N) and torch.equal(some.row_N, other.row_N))
