"""Builds the teacher of a run: a checkpoint on the mesh of the model, or the model without its adapters."""

from functools import partial
from pathlib import Path

from torch import Tensor

from seektune.checkpoint import locate
from seektune.checkpoint.load import check_fit
from seektune.checkpoint.source import FolderSource
from seektune.lora.layers import AdaptedHead
from seektune.model.causal_lm import DeepseekV4ForCausalLM, checkpoint_shapes
from seektune.model.config import DeepseekV4Config
from seektune.model.device import DTYPES
from seektune.model.quantized import KindOf, quantize_modules
from seektune.model.transformer import TransformerPart
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.parallelize import parallelize
from seektune.parallel.teacher import Teacher
from seektune.recipe.recipe import Recipe
from seektune.train.objectives import DistillConfig

HEAD = "head.weight"


def check_teacher(section: DistillConfig, config: DeepseekV4Config) -> None:
    """Check by its headers that the teacher's checkpoint is whole and has the model's vocabulary.

    Raises:
        ValueError: a file or tensor is missing or damaged, or the vocabularies differ in size.
    """
    if section.teacher is None:
        return
    folder = locate(section.teacher)
    other = DeepseekV4Config.from_pretrained(folder)
    if other.vocab_size != config.vocab_size:
        raise ValueError(
            f"objective.teacher {section.teacher} predicts {other.vocab_size} tokens, but the model "
            f"{config.vocab_size}; distillation needs the same vocabulary"
        )
    check_fit(FolderSource(folder), checkpoint_shapes(other), folder)


def make_teacher(recipe: Recipe, section: DistillConfig, model: ParallelModel) -> Teacher:
    """The teacher of a model; collective.

    Raises:
        ValueError: its layout does not fit the mesh, or adapters change a head that both would share.
    """
    if section.teacher is None:
        if any(stage.is_last and _has_adapted_head(stage) for stage in model.stages.values()):
            raise ValueError(
                "objective.teacher null takes the model without adapters, whose head must stay as it is: remove head "
                "from lora.targets, or name the base as objective.teacher"
            )
        return Teacher(model, None)
    folder = locate(section.teacher)
    if section.teacher_offload == "stream":
        return _streamed(recipe, folder, model.mesh)
    config = DeepseekV4Config.from_pretrained(folder)
    prepare = partial(freeze, kind_of=FolderSource(folder).kind if section.teacher_quantized else None)
    layout = recipe.parallel.model_copy(update={"recompute": "none"})
    numbers = DTYPES[recipe.model.dtype], recipe.model.numerics
    teacher = parallelize(config, model.mesh, layout, *numbers, prepare)
    teacher.load_pretrained(folder)
    return Teacher(teacher, _head(teacher, folder))


def meta_teacher(recipe: Recipe, section: DistillConfig, folder: Path) -> DeepseekV4ForCausalLM:
    """The whole teacher on the meta device, with the formats in which it is held."""
    model = DeepseekV4ForCausalLM(DeepseekV4Config.from_pretrained(folder), "meta", DTYPES[recipe.model.dtype])
    freeze(model, FolderSource(folder).kind if section.teacher_quantized else None)
    return model


def freeze(part: TransformerPart, kind_of: KindOf | None) -> None:
    """Freeze a part of a teacher, and keep its weights in the formats that `kind_of` says."""
    if kind_of is not None:
        quantize_modules(part, kind_of)
    part.requires_grad_(False)


def _streamed(recipe: Recipe, folder: Path, mesh: Mesh) -> Teacher:
    if mesh.dims.world > 1:
        raise ValueError("objective.teacher_offload stream is for one process; set it to none")
    numbers = DTYPES[recipe.model.dtype], recipe.model.numerics, mesh.device
    model = DeepseekV4ForCausalLM.from_pretrained(folder, *numbers, quantized=True, streamed=True)
    return Teacher(ParallelModel.alone(model), model.head.values().detach())


def _head(teacher: ParallelModel, folder: Path) -> Tensor | None:
    """The whole head where the loss is computed: FSDP2 shards that of the teacher, which then is not used."""
    if not any(stage.is_last for stage in teacher.stages.values()):
        return None
    if teacher.mesh.dims.world == 1:
        return teacher.whole.head.values().detach()
    dtype = next(iter(teacher.stages.values())).dtype
    return FolderSource(folder).values(HEAD).to(device=teacher.device, dtype=dtype)


def _has_adapted_head(part: TransformerPart) -> bool:
    return isinstance(part.head, AdaptedHead) and len(part.head.lora) > 0
