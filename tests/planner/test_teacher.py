"""Planned memory of a teacher or a reference model: equal to the shards that each process of a mesh holds of it."""

from functools import partial
from pathlib import Path

import pytest
import torch

from seektune.checkpoint.source import FolderSource
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.parallel.dims import make_dims
from seektune.parallel.mesh import Mesh
from seektune.parallel.parallelize import parallelize
from seektune.parallel.simulate.fake_backend import fake_process_group, meta_tensors
from seektune.planner.hardware import known_gpu
from seektune.planner.memory import rank_memory
from seektune.planner.report import COUNTED_TEACHER, FROZEN_MODELS, make_report
from seektune.recipe.recipe import Recipe
from seektune.run.frozen_models import freeze, frozen_layout
from tests.places import RECIPES, TINY

from .jobs import layout, recipe

SMALL = ("batch.global_size=8", "batch.micro_size=2", "batch.length=8", "objective.name=distill")
DEEP = DeepseekV4Config.preset("tiny").replace(num_hidden_layers=5, compress_ratios=[0, 4, 128, 4, 128, 0])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deeper model than the student, in its released format."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    DeepseekV4ForCausalLM(DEEP).save_pretrained(folder, format="released")
    return folder


def held(asked: Recipe, folder: Path, world: int, rank: int, packed: bool) -> int:
    """Bytes of the frozen model's weights and tables on a process, of its real shards."""
    prepare = partial(freeze, kind_of=FolderSource(folder).kind if packed else None)
    with fake_process_group(rank, world):
        mesh = Mesh.of(make_dims(asked.parallel, world, DEEP), torch.device("cpu"), control="fake")
        with meta_tensors(lambda *collective: None):
            alone = DEEP.without_drafter()
            model = parallelize(alone, mesh, frozen_layout(asked.parallel), torch.float32, "plain", prepare)
        return sum(piece.tensor.numel() * piece.tensor.element_size() for piece in model.shards().values())


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("words", "world"),
    [
        (["parallel.ep_size=2"], 4),
        (["parallel.pp_size=2", "parallel.pipeline.schedule=zbv"], 4),
        (["parallel.pp_size=2", "parallel.pipeline.layers_per_stage=4"], 4),
    ],
)
def test_planned_weights_are_those_of_real_shards(teacher: Path, words: list[str], world: int, packed: bool) -> None:
    section = (f"objective.teacher={teacher}", f"objective.teacher_quantized={packed}")
    planned = layout(TINY, world, *SMALL, *words, *section)
    ranks = (0, world - 1)
    assert [rank_memory(planned, rank).upper["teacher_weights"] for rank in ranks] == [
        held(recipe(TINY, *SMALL, *words, section[0]), teacher, world, rank, packed) for rank in ranks
    ]


@pytest.mark.slow
def test_head_and_hidden_states_count_and_a_streamed_teacher_is_small(teacher: Path) -> None:
    words = (f"objective.teacher={teacher}", "objective.teacher_quantized=true")
    alone = rank_memory(layout(TINY, 1, *SMALL, *words), 0).upper
    assert alone["teacher_states"] == 8 * 8 * DEEP.hidden_size * 4
    assert alone["teacher_head"] == 0
    pair = rank_memory(layout(TINY, 2, *SMALL, *words), 1).upper
    assert pair["teacher_head"] == DEEP.vocab_size * DEEP.hidden_size * 4
    streamed = rank_memory(layout(TINY, 1, *SMALL, *words, "objective.teacher_offload=stream"), 0).upper
    assert 0 < streamed["teacher_weights"] < alone["teacher_weights"]
    without = rank_memory(layout(TINY, 1, *SMALL, "objective.teacher=not/here"), 0).upper
    assert without["teacher"] == 0
    assert alone["total"] - alone["allocator"] - alone["teacher"] == without["total"] - without["allocator"]


@pytest.mark.slow
def test_a_report_says_what_of_the_teacher_it_counts(teacher: Path) -> None:
    report = make_report(layout(TINY, 1, *SMALL, f"objective.teacher={teacher}"), known_gpu("h100-80gb", 1))
    assert COUNTED_TEACHER in report.assumptions()
    assert FROZEN_MODELS not in report.assumptions()
    assert "without other checkpoints" not in report.verdict()[1]


REFERENCES = {
    "dpo": [],
    "grpo": ["model.preset=tiny", "model.weights=null", "objective.beta=0.1"],
}
"""Further words of the tiny recipe of each objective."""


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_checkpoint_has_its_shards_and_no_head_of_its_own(teacher: Path, name: str, packed: bool) -> None:
    path = RECIPES / f"deepseek_v4_tiny_{name}.yaml"
    words = [*REFERENCES[name], f"objective.reference_checkpoint={teacher}", f"objective.reference_quantized={packed}"]
    words.append("parallel.ep_size=2")
    planned = layout(path, 4, *words)
    numbers = [rank_memory(planned, rank).upper for rank in (0, 3)]
    asked = recipe(path, *words)
    assert [each["teacher_weights"] for each in numbers] == [held(asked, teacher, 4, rank, packed) for rank in (0, 3)]
    assert all(each["teacher"] == each["teacher_weights"] for each in numbers)
    without = rank_memory(layout(path, 4, *words, "objective.reference_checkpoint=not/here"), 0).upper
    assert without["teacher"] == 0
    left = numbers[0]["total"] - numbers[0]["teacher"] - without["total"]
    assert left == pytest.approx(numbers[0]["allocator"] - without["allocator"])
    report = make_report(planned, known_gpu("h100-80gb", 4))
    assert COUNTED_TEACHER in report.assumptions()
    assert FROZEN_MODELS not in report.assumptions()


@pytest.mark.slow
def test_a_streamed_reference_is_small(teacher: Path) -> None:
    path = RECIPES / "deepseek_v4_tiny_dpo.yaml"
    words = [f"objective.reference_checkpoint={teacher}", "objective.reference_quantized=true"]
    whole = rank_memory(layout(path, 1, *words), 0).upper["teacher"]
    assert 0 < rank_memory(layout(path, 1, *words, "objective.reference_offload=stream"), 0).upper["teacher"] < whole
