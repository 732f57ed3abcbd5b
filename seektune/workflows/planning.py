"""Inputs of the planner from a recipe: the shapes of the model's tensors, and the numbers of the job."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.lowbit import value_counts
from seektune.model.config import DeepseekV4Config
from seektune.model.device import DTYPES
from seektune.model.kv_cache.size import CacheSize
from seektune.parallel.pipeline_order import schedule_actions
from seektune.planner.job import Layout, TeacherModel, TrainingJob, Weight, Weights, make_layout
from seektune.planner.rollout_formulas import AnswerCaches
from seektune.recipe.recipe import Recipe
from seektune.run.build import meta_model
from seektune.run.frozen_models import meta_frozen
from seektune.run.sampled_answers import TOGETHER
from seektune.train.optim.build import check_groups, planned_state

PACKED = (torch.int8, torch.uint8)
"""Dtypes of quantized weights."""
ordered = cache(schedule_actions)


def job_of(recipe: Recipe, config: DeepseekV4Config) -> TrainingJob:
    """The job of a recipe, in the stage of `batch.stages` that needs most memory.

    Raises:
        ValueError: an adapter target or a group of `optimizer.groups` matches nothing in the model.
    """
    mtp = config.mtp_layers > 0 and recipe.loss.mtp_weight > 0
    batch = recipe.batch.largest_stage()
    return TrainingJob(
        config=config,
        weights=Weights(_weights(recipe, config, mtp)),
        itemsize=DTYPES[recipe.model.dtype].itemsize,
        parallel=recipe.parallel,
        rows=batch.global_size,
        micro_size=batch.micro_size,
        length=batch.length,
        mtp=mtp,
        masters=recipe.optimizer.master == "fp32",
        lora_rank=recipe.lora.rank if recipe.lora.targets else 0,
        streamed=recipe.model.offload == "stream",
        references=int(recipe.has_reference_pass),
        frozen_models=recipe.has_frozen_models,
        teacher_model=_teacher(recipe),
        qat=recipe.train.qat,
        anchors=recipe.train.drafter_anchors if recipe.train.drafter else 0,
        indexers=recipe.train.indexer_stage,
        answers=_answers(recipe, config) if recipe.objective.samples else None,
    )


def layout_of(job: TrainingJob, gpus: int) -> Layout:
    """`planner.job.make_layout` with torch's pipeline schedules."""
    return make_layout(job, gpus, ordered)


def _teacher(recipe: Recipe) -> TeacherModel | None:
    """The teacher or reference model, if there is one and its checkpoint is on this machine; its weights are frozen."""
    wanted = recipe.objective.frozen_models
    if len(wanted) != 1 or not Path(wanted[0].checkpoint).is_dir():
        return None
    model = meta_frozen(recipe, wanted[0])
    parameters = dict(model.named_parameters())
    state = model.state_dict()
    counts = value_counts(state)
    weights = [
        Weight(
            name,
            tuple(tensor.shape),
            _itemsize(tensor),
            learns=False,
            buffer=name not in parameters,
            values=counts.get(name, 0) // max(tensor.numel(), 1),
        )
        for name, tensor in state.items()
    ]
    return TeacherModel(model.config, Weights(weights), wanted[0].streamed, recipe.objective.distills)


def _answers(recipe: Recipe, config: DeepseekV4Config) -> AnswerCaches:
    """The caches of sampled answers, as the engine makes them for prompts and answers of `batch.length` tokens."""
    longest = recipe.batch.length + 1
    dtype = DTYPES[recipe.model.dtype]
    sizes = [CacheSize.of(config, [layer], longest, dtype) for layer in range(config.num_hidden_layers)]
    return AnswerCaches(TOGETHER, tuple(each.fixed for each in sizes), tuple(each.per_token for each in sizes))


def _itemsize(tensor: Tensor) -> int:
    return 1 if tensor.dtype in PACKED else tensor.element_size()


def _weights(recipe: Recipe, config: DeepseekV4Config, mtp: bool) -> list[Weight]:
    """All parameters and buffers, with quantized frozen weights and adapters as in training."""
    model = meta_model(recipe, config)
    parameters = dict(model.named_parameters())
    state = model.state_dict()
    counts = value_counts(state)
    learning = {name for name, parameter in parameters.items() if parameter.requires_grad}
    check_groups(learning, recipe.optimizer)
    needs = {name: planned_state(name, parameters[name], recipe.optimizer, config) for name in learning}
    return [
        Weight(
            name,
            tuple(tensor.shape),
            _itemsize(tensor),
            name in learning and (mtp or recipe.train.drafter or not name.startswith("mtp.")),
            buffer=name not in parameters,
            values=counts.get(name, 0) // max(tensor.numel(), 1),
            moment_bytes=needs[name].moment_bytes if name in needs else 0,
            matrix_flops=needs[name].matrix_flops if name in needs else 0,
            apart=not (recipe.train.drafter and name.startswith("mtp.")),
        )
        for name, tensor in state.items()
    ]
