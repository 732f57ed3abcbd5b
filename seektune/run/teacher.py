"""Builds the teachers of a run: checkpoints on the mesh of the model, or the model with other adapters or none."""

from pathlib import Path

from torch import Tensor

from seektune.checkpoint import locate
from seektune.checkpoint.source import FolderSource
from seektune.lora.layers import AdaptedHead
from seektune.model.transformer import TransformerPart
from seektune.parallel.lora import with_adapter
from seektune.parallel.model import ParallelModel
from seektune.parallel.placement import gathered
from seektune.parallel.teacher import Teacher, Teachers
from seektune.recipe.recipe import Recipe
from seektune.run.frozen_models import load_frozen
from seektune.run.named_key import naming
from seektune.train.objective_section import FrozenModel
from seektune.train.objectives import DistillConfig
from seektune.train.rollout_objectives import OpdConfig

HEAD = "head.weight"


def make_teacher(recipe: Recipe, section: DistillConfig, model: ParallelModel) -> Teacher:
    """The teacher of distillation; collective.

    Raises:
        ValueError: its layout does not fit the mesh, or adapters change a head that both would share.
    """
    return (
        _checkpoint(recipe, section.frozen_models[0], model)
        if section.frozen_models
        else _without_adapters("objective.teacher", model)
    )


def make_teachers(recipe: Recipe, section: OpdConfig, model: ParallelModel) -> Teachers:
    """The teachers of on-policy distillation, in the order of the recipe; collective.

    Raises:
        ValueError: as `make_teacher`, or an adapter is damaged or does not fit the model.
    """
    frozen = {each.key: each for each in section.frozen_models}
    found = []
    for number, each in enumerate(section.teachers):
        key = f"objective.teachers.{number}"
        if f"{key}.checkpoint" in frozen:
            found.append(_checkpoint(recipe, frozen[f"{key}.checkpoint"], model))
        elif each.adapter is not None:
            found.append(_adapter(f"{key}.adapter", Path(each.adapter), model))
        else:
            found.append(_without_adapters(f"{key}.checkpoint", model))
    return Teachers(found)


def _checkpoint(recipe: Recipe, wanted: FrozenModel, model: ParallelModel) -> Teacher:
    teacher = load_frozen(recipe, wanted, model.mesh)
    return Teacher(teacher, _head(teacher, locate(wanted.checkpoint)))


def _adapter(key: str, folder: Path, model: ParallelModel) -> Teacher:
    with naming(key):
        teacher = with_adapter(model, folder)
    last = next((stage for stage in teacher.stages.values() if stage.is_last), None)
    return Teacher(teacher, None if last is None else gathered(last.head.values()).detach(), adapted=True)


def _without_adapters(key: str, model: ParallelModel) -> Teacher:
    if any(stage.is_last and _has_adapted_head(stage) for stage in model.stages.values()):
        raise ValueError(
            f"{key} null takes the model without adapters, whose head must stay as it is: remove head "
            f"from lora.targets, or name the base as {key}"
        )
    return Teacher(model, None)


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
