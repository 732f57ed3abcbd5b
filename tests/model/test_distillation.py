"""Distillation against its formula on whole logits, and what it is made of."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from seektune.kernels import linear_divergence, top_k_divergence
from seektune.model.distillation import (
    Distillation,
    OnPolicyDistillation,
    TeacherHead,
    TopKDistillation,
    top_tokens,
)
from seektune.model.head import Taught
from seektune.sequence import IGNORE_INDEX, TEACHER, TEACHER_IDS, TEACHER_LOGPROBS, SequenceLayout
from tests.largest_tensor import LargestTensor

VOCAB = 13
PACKED = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0], [3, 3, 3, 3, 3, 3, 4, 4]])


def inputs(weighted: bool) -> dict[str, Tensor]:
    made = {
        "hidden": torch.randn(2, 8, 6, dtype=torch.float64, requires_grad=True),
        "head": torch.randn(VOCAB, 6, dtype=torch.float64, requires_grad=True),
        "teacher": torch.randn(2, 8, 5, dtype=torch.float64),
        "teacher_head": torch.randn(VOCAB, 5, dtype=torch.float64),
    }
    tokens = torch.randint(VOCAB, (2, 8))
    made["labels"] = torch.where((torch.rand(2, 8) < 0.7) & (PACKED > 0), tokens, IGNORE_INDEX)
    made["weights"] = torch.rand(2, 8, dtype=torch.float64) if weighted else torch.ones(2, 8, dtype=torch.float64)
    return made


def by_formula(given: dict[str, Tensor], share: float, temperature: float, reverse: bool) -> Tensor:
    """One token after the other, with all of the vocabulary."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(2):
        for place in range(1, 8):
            same = PACKED[row, place] == PACKED[row, place - 1] and PACKED[row, place] > 0
            label = int(given["labels"][row, place])
            if not same or label == IGNORE_INDEX:
                continue
            ours = given["head"] @ given["hidden"][row, place - 1]
            theirs = given["teacher_head"] @ given["teacher"][row, place - 1]
            q = torch.softmax(ours / temperature, 0)
            p = torch.softmax(theirs / temperature, 0)
            divergence = (q * (q / p).log()).sum() if reverse else (p * (p / q).log()).sum()
            own = -torch.log_softmax(ours, 0)[label]
            weight = given["weights"][row, place]
            total = total + weight * (share * temperature**2 * divergence + (1 - share) * own)
    return total / 7


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("share", "temperature", "reverse"), [(1.0, 1.0, False), (0.6, 2.0, False), (0.3, 0.7, True)])
def test_loss_and_gradients_are_those_of_the_formula(share: float, temperature: float, reverse: bool, weighted: bool):
    given = inputs(weighted)
    layout = SequenceLayout.from_documents(PACKED)
    columns = {TEACHER: torch.nn.functional.pad(given["teacher"][:, :-1], (0, 0, 1, 0))}
    columns |= {"weights": given["weights"]} if weighted else {}
    taught = Taught(given["labels"], 7.0, columns)
    objective = Distillation(share, temperature, reverse, given["teacher_head"])
    found = objective.of_hidden(given["hidden"], layout, taught, 7.0, given["head"])
    expected = by_formula(given, share, temperature, reverse)
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=1e-12)
    leaves = [given["hidden"], given["head"]]
    gradients = zip(*(torch.autograd.grad(loss, leaves) for loss in (found.loss, expected)), strict=True)
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    blend = share * found.parts["divergence"] + (1 - share) * found.parts["cross_entropy"]
    torch.testing.assert_close(blend, found.loss.detach())


def kept_of(given: dict[str, Tensor], count: int, temperature: float) -> dict[str, Tensor]:
    """Columns with the teacher's likeliest tokens, in fp64, which files would round to fp32."""
    whole = torch.log_softmax(given["teacher"] @ given["teacher_head"].T / temperature, dim=-1)
    logprobs, ids = whole.topk(count, dim=-1)
    others = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=0).log()
    at_labels = (torch.nn.functional.pad(x[:, :-1], (0, 0, 1, 0)) for x in (ids, torch.cat([logprobs, others], -1)))
    return dict(zip((TEACHER_IDS, TEACHER_LOGPROBS), at_labels, strict=True))


@pytest.mark.parametrize("reverse", [False, True])
def test_as_many_kept_tokens_as_there_are_make_the_divergence_over_the_vocabulary(reverse: bool):
    given = inputs(weighted=True)
    columns = {**kept_of(given, VOCAB, 2.0), "weights": given["weights"]}
    taught = Taught(given["labels"], 7.0, columns)
    layout = SequenceLayout.from_documents(PACKED)
    found = TopKDistillation(0.6, 2.0, reverse).of_hidden(given["hidden"], layout, taught, 7.0, given["head"])
    expected = by_formula(given, 0.6, 2.0, reverse)
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=1e-12)
    leaves = [given["hidden"], given["head"]]
    gradients = zip(*(torch.autograd.grad(loss, leaves) for loss in (found.loss, expected)), strict=True)
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_not_kept_is_one_event(reverse: bool):
    """The divergence grows with the kept tokens up to that over the vocabulary, and is 0 from a teacher that differs
    from the model only in how it shares out the rest."""
    given = inputs(weighted=False)
    layout = SequenceLayout.from_documents(PACKED)
    values = []
    for count in (1, 2, 5, VOCAB - 1, VOCAB):
        taught = Taught(given["labels"], 7.0, kept_of(given, count, 1.0))
        found = TopKDistillation(reverse=reverse).of_hidden(given["hidden"], layout, taught, 7.0, given["head"])
        values.append(found.loss.item())
    assert all(fewer < more + 1e-12 for fewer, more in pairwise(values))
    assert values[0] < 0.9 * values[-1]
    assert values[3] == pytest.approx(values[4], rel=1e-9), "a rest of one token is that token"
    hidden = given["hidden"].detach().reshape(16, -1).requires_grad_()
    own = torch.log_softmax(hidden.detach() @ given["head"].detach().T, dim=-1)
    ids = own.topk(3, dim=-1).indices
    kept = torch.cat([own.gather(1, ids), own.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)], dim=1)
    same = top_k_divergence(hidden, given["head"].detach(), ids, kept, None, 1.0, reverse)
    assert abs(same.item()) < 1e-12
    assert float(torch.autograd.grad(same, hidden)[0].abs().max()) < 1e-12


def test_likeliest_tokens_are_those_of_the_softmax():
    given = inputs(weighted=False)
    layout = SequenceLayout.from_documents(PACKED)
    head = given["head"].detach().float()
    tops = top_tokens(given["hidden"].detach().float(), layout, given["labels"], head, 4, 1.7)
    taught = layout.targets(given["labels"], 1) != IGNORE_INDEX
    assert tops.shape == (2, 8, 9)
    assert not tops[~taught].any()
    probabilities = torch.softmax(given["hidden"].detach() @ given["head"].detach().T / 1.7, dim=-1)[taught]
    kept = probabilities.topk(4, dim=-1)
    assert torch.equal(tops[taught][:, :4].long(), kept.indices)
    torch.testing.assert_close(tops[taught][:, 4:8].exp().double(), kept.values, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(tops[taught][:, 4:].exp().sum(1), torch.ones(int(taught.sum())))
    everything = top_tokens(given["hidden"].detach().float(), layout, given["labels"], head, VOCAB, 1.0)
    assert (everything[taught][:, -1] == -torch.inf).all()


def test_on_policy_loss_is_that_of_each_teacher_on_its_own_tokens():
    """The second teacher has every other token; its hidden states are narrower than the column."""
    given = inputs(weighted=True)
    layout = SequenceLayout.from_documents(PACKED)
    numbers = (torch.arange(8) % 2).expand(2, 8)
    narrow = torch.randn(VOCAB, 3, dtype=torch.float64)
    columns = {TEACHER: torch.nn.functional.pad(given["teacher"][:, :-1], (0, 0, 1, 0)), "weights": given["weights"]}
    heads = (TeacherHead("a", 5, given["teacher_head"]), TeacherHead("b", 3, narrow))
    objective = OnPolicyDistillation(heads)
    taught = Taught(given["labels"], 7.0, {**columns, "teacher_number": numbers})
    found = objective.of_hidden(given["hidden"], layout, taught, 7.0, given["head"])
    alone = []
    for number, head in enumerate((given["teacher_head"], narrow)):
        labels = torch.where(numbers == number, given["labels"], IGNORE_INDEX)
        teacher = given["teacher"][..., : head.shape[1]]
        alone.append(by_formula({**given, "labels": labels, "teacher": teacher, "teacher_head": head}, 1.0, 1.0, True))
    torch.testing.assert_close(found.loss, alone[0] + alone[1], rtol=1e-10, atol=1e-12)
    leaves = [given["hidden"], given["head"]]
    gradients = zip(*(torch.autograd.grad(loss, leaves) for loss in (found.loss, alone[0] + alone[1])), strict=True)
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    means = objective.means({name: float(value) for name, value in found.parts.items()})
    assert means.keys() == {"divergence", "entropy", "divergence_a", "divergence_b"}
    shares = {each: float(found.parts[f"share_{each}"]) for each in "ab"}
    assert means["divergence"] == pytest.approx(sum(shares[each] * means[f"divergence_{each}"] for each in "ab"))
    assert objective.means({**dict.fromkeys(objective.part_names, 0.0), "share_a": 1.0}).keys() == {
        "divergence",
        "entropy",
        "divergence_a",
    }


@pytest.mark.parametrize("reverse", [False, True])
def test_a_model_does_not_diverge_from_itself(reverse: bool):
    hidden = torch.randn(20, 6, requires_grad=True)
    head = torch.randn(VOCAB, 6)
    found = linear_divergence(hidden, head, hidden, head, None, 1.5, reverse)
    assert abs(found.item()) < 1e-5
    assert float(torch.autograd.grad(found, hidden)[0].abs().max()) < 1e-5


def test_logits_of_all_tokens_never_exist_at_once():
    """Neither the model's nor the teacher's: the largest tensor is a chunk of them."""
    hidden = torch.randn(3000, 4, requires_grad=True)
    head = torch.randn(500, 4, requires_grad=True)
    with LargestTensor() as largest:
        linear_divergence(hidden, head, torch.randn(3000, 3), torch.randn(500, 3), None, 1.0, False).backward()
    assert largest.size <= 512 * 500


def test_logits_of_all_tokens_never_exist_beside_kept_ones():
    hidden = torch.randn(3000, 4, requires_grad=True)
    head = torch.randn(500, 4, requires_grad=True)
    ids = torch.rand(3000, 500).argsort(1)[:, :8].int()
    kept = torch.log_softmax(torch.randn(3000, 9), dim=1)
    with LargestTensor() as largest:
        top_k_divergence(hidden, head, ids, kept, None, 1.0, False).backward()
        labels = torch.zeros(1, 3000, dtype=torch.long)
        top_tokens(hidden.detach()[None], SequenceLayout.single(1, 3000), labels, head.detach(), 8, 1.0)
    assert largest.size <= 512 * 500
