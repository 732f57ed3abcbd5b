"""Batch size and row length by step: each stage draws its own rows, and a run resumes anywhere, to the last bit."""

import pytest
from pydantic import ValidationError

from seektune.data.config import BatchConfig
from seektune.data.example import Example
from seektune.data.examples import ExampleList
from seektune.data.loader import Loader
from seektune.data.mixing import Mixture
from seektune.data.staged_loader import StagedLoader
from seektune.recipe.recipe import Recipe
from seektune.run.stages import prepared_loader
from seektune.sequence import Batch

TEXT = list(range(100, 160))
STAGES = [
    {"from_step": 3, "global_size": 4},
    {"from_step": 5, "length": 12, "micro_size": 1},
    {"from_step": 8, "length": 20},
]

RETURNING = [{"from_step": 3, "length": 12}, {"from_step": 5, "length": 6}, {"from_step": 7, "length": 12}]


def parts(length: int) -> list[ExampleList]:
    """A text of 60 tokens, cut at a length."""
    cut = [TEXT[start : start + length] for start in range(0, len(TEXT), length)]
    return [ExampleList([Example(part, [True] * len(part), str(part[0])) for part in cut])]


def loader(pack: bool = False, stages: list[dict[str, int]] = STAGES) -> Loader | StagedLoader:
    batch = {"global_size": 2, "micro_size": 2, "length": 6, "pack": pack, "stages": stages}
    recipe = Recipe.model_validate({"model": {"preset": "tiny"}, "batch": batch, "steps": 9})

    def loader_of(mixture: Mixture, stage: BatchConfig) -> Loader:
        return Loader(mixture, stage, pad_id=2)

    return prepared_loader(recipe, parts(6), parts, loader_of)


def rows(batches: list[Batch]) -> list[list[int]]:
    """The tokens of each row, without padding."""
    return [
        [int(token) for token, document in zip(*row, strict=True) if document]
        for batch in batches
        for row in zip(batch.tokens, batch.documents, strict=True)
    ]


def test_each_stage_has_its_batch_size_and_row_length() -> None:
    stream = loader()
    steps = [stream.next_step() for _ in range(9)]
    assert [step.tokens for step in steps] == [12, 12, 24, 24, 48, 48, 48, 80, 80]
    assert [step.micro_batches for step in steps] == [1, 1, 2, 2, 4, 4, 4, 4, 4]


def test_a_larger_batch_continues_the_epoch_and_longer_rows_begin_another() -> None:
    stream = loader()
    steps = [rows(list(stream.next_step().batches)) for _ in range(6)]
    first_epoch = [row[0] for step in steps[:4] for row in step][:10]
    assert sorted(first_epoch) == TEXT[::6]
    longer = [row[0] for step in steps[4:] for row in step][:5]
    assert sorted(longer) == TEXT[::12]


def test_a_length_that_returns_has_another_order() -> None:
    stream = loader(stages=RETURNING)
    steps = [rows(list(stream.next_step().batches)) for _ in range(8)]
    assert steps[4:6] != steps[:2]
    assert steps[6:] != steps[2:4]
    assert {len(row) for step in steps[:2] + steps[4:6] for row in step} == {6}


@pytest.mark.parametrize("stages", [STAGES, RETURNING])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("done", range(9))
def test_it_resumes_after_every_step(done: int, pack: bool, stages: list[dict[str, int]]) -> None:
    whole = loader(pack, stages)
    expected = [rows(list(whole.next_step().batches)) for _ in range(9)]
    begun = loader(pack, stages)
    for _ in range(done):
        begun.next_step()
    resumed = loader(pack, stages)
    resumed.next_step()
    resumed.load_state_dict(begun.state_dict())
    assert [rows(list(resumed.next_step().batches)) for _ in range(9 - done)] == expected[done:]


def test_it_goes_back_over_the_start_of_a_stage() -> None:
    stream = loader()
    states = []
    expected = []
    for _ in range(9):
        states.append(stream.state_dict())
        expected.append(rows(list(stream.next_step().batches)))
    stream.load_state_dict(states[2])
    assert [rows(list(stream.next_step().batches)) for _ in range(7)] == expected[2:]


def test_a_run_without_stages_cannot_resume_as_one_with_stages() -> None:
    plain = loader(stages=[])
    assert isinstance(plain, Loader)
    with pytest.raises(ValueError, match="the run to resume had no batch"):
        loader().load_state_dict(plain.state_dict())


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"from_step": 5}, {"from_step": 5}], "stages must be in order of from_step, each once, not 5, 5"),
        ([{"from_step": 1}], "greater than or equal to 2"),
        ([{"from_step": 4, "global_size": 3}], "micro_size 2 must divide global_size 3 from step 4 on"),
    ],
)
def test_stages_that_do_not_fit_are_refused(stages: list[dict[str, int]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BatchConfig(global_size=4, micro_size=2, length=8, stages=stages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"kind": "text", "path": "rows", "stream": True}}, "batch.stages needs prepared rows"),
        ({"objective": {"name": "dpo"}}, "batch.stages is for objective.name cross_entropy"),
    ],
)
def test_recipes_with_stages_that_cannot_have_them_are_refused(change: dict, message: str) -> None:
    batch = {"global_size": 4, "length": 8, "stages": STAGES}
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({"model": {"preset": "tiny"}, "batch": batch, "steps": 9, **change})


def test_plans_take_the_stage_that_needs_most_memory() -> None:
    batch = BatchConfig(global_size=4, micro_size=4, length=8, stages=[{"from_step": 5, "length": 64, "micro_size": 1}])
    assert (batch.largest_stage().micro_size, batch.largest_stage().length) == (1, 64)
    fewer = BatchConfig(global_size=4, micro_size=4, length=8, stages=[{"from_step": 5, "length": 16, "micro_size": 1}])
    assert (fewer.largest_stage().micro_size, fewer.largest_stage().length) == (4, 8)
