import pytest
import torch

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.data.example import continuation
from seektune.evaluate.choice_task import ChoiceTask
from seektune.evaluate.likelihood import likelihoods
from seektune.evaluate.multiple_choice import ChoicePrompt, choice_likelihoods
from seektune.parallel.model import ParallelModel
from tests.questions import read_split


@pytest.fixture(scope="module")
def questions() -> list[ChoicePrompt]:
    dice = torch.Generator().manual_seed(8)

    def ids(length: int) -> list[int]:
        return torch.randint(64, (length,), generator=dice).tolist()

    shapes = ((1, (1, 1, 1, 1)), (126, (1, 2, 3, 9)), (3, (5, 4)), (20, (1,)), (17, (30, 2, 2)))
    return [ChoicePrompt(ids(prompt), [ids(ending) for ending in endings]) for prompt, endings in shapes]


@pytest.mark.slow
@pytest.mark.parametrize("batch_tokens", [1, 200, 8192])
def test_likelihoods_are_those_of_whole_sequences(toy_model, questions, batch_tokens):
    model, told = toy_model(), []
    found = choice_likelihoods(model, questions, batch_tokens, lambda done, total: told.append((done, total)))
    whole = [continuation(each.prompt, ending, "x") for each in questions for ending in each.endings]
    expected = likelihoods(model, whole, 8192, 0)
    assert len(found) == len(expected) == 14
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, abs=1e-6)
        assert ours.greedy == theirs.greedy
    assert told[-1] == (14, 14)
    assert len(told) == {1: 5, 8192: 1}.get(batch_tokens, len(told))


def test_a_prompt_is_read_once(toy_model, questions, monkeypatch):
    model, shapes = toy_model(torch.float32), []
    advance = model.advance
    monkeypatch.setattr(model, "advance", lambda ids, *rest: (shapes.append(tuple(ids.shape)), advance(ids, *rest))[1])
    choice_likelihoods(model, questions[1:2], 8192)
    assert shapes == [(1, 126), (4, 8)]


@pytest.mark.slow
def test_hellaswag_has_the_same_numbers_either_way(toy_model, tmp_path):
    from seektune.data.tokenizer import load_tokenizer

    rows, tokenizer = read_split(write_hellaswag(tmp_path, 1, 12), "validation"), load_tokenizer(512)
    model = toy_model(torch.float32, vocab_size=512)
    task = ChoiceTask("hellaswag", "HellaSwag", rows)
    ours = task.run(model, tokenizer, 8192)
    whole = task.run(ParallelModel.alone(model), tokenizer, 8192)
    assert ours.outcomes == whole.outcomes
    assert ours.counts == whole.counts | {"loss": pytest.approx(whole.counts["loss"], abs=1e-6)}
