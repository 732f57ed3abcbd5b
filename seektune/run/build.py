"""Builds the mesh and the model of a run, with weights, adapters and parallelism."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from seektune.checkpoint import locate
from seektune.checkpoint.companions import code_notes
from seektune.checkpoint.drafter import drafter_notes
from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.load import check_fit
from seektune.checkpoint.source import FolderSource
from seektune.data.other_tokenizer import tokenizer_note
from seektune.data.tokenizer import Tokenizer
from seektune.lora.build import adapter_injector, add_adapters
from seektune.lora.format import read_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM, checkpoint_shapes
from seektune.model.config import DeepseekV4Config
from seektune.model.device import DTYPES
from seektune.model.fake_quantized import fake_quantize_modules
from seektune.model.initialize import initialize
from seektune.parallel.deep_ep import check_deep_ep
from seektune.parallel.dims import make_dims
from seektune.parallel.lora import init_adapters, load_adapter
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.parallelize import Prepare, parallelize, unchanged
from seektune.parallel.process_group import ProcessSlot
from seektune.parallel.recompute import recompute_blocks
from seektune.recipe.load import dump_recipe
from seektune.recipe.recipe import ModelConfig, Recipe
from seektune.run.drafter import drafter_trainer
from seektune.run.frozen_models import check_frozen
from seektune.run.indexers import indexer_trainer
from seektune.run.named_key import locate_named, naming
from seektune.train.optim.build import check_groups, check_library
from seektune.train.settings import Origin


def build_mesh(recipe: Recipe, config: DeepseekV4Config, slot: ProcessSlot) -> Mesh:
    """The mesh of the recipe.

    Raises:
        ValueError: the sizes do not fit these processes, this model or this batch.
    """
    recipe.check_world(slot.world)
    return Mesh.of(make_dims(recipe.parallel, slot.world, config), slot.device)


def read_config(section: ModelConfig) -> DeepseekV4Config:
    """The architecture; downloads config.json if only Hub weights are given.

    Raises:
        ValueError: there is none, or it contradicts the preset.
    """
    known = section.architecture()
    if section.weights is None or os.path.isdir(section.weights):
        assert known is not None, "the recipe names no architecture"
        return known
    folder = locate_named("model.weights", section.weights)
    found = DeepseekV4Config.from_pretrained(folder)
    section.agree(found)
    return found


def check_sources(recipe: Recipe, config: DeepseekV4Config) -> None:
    """Check by their headers that the weights and the adapter that a run starts from are whole, before work begins.

    Raises:
        ValueError: a file or tensor is missing, damaged or of the wrong shape; the message names it.
    """
    if recipe.model.weights is not None:
        folder = locate(recipe.model.weights)
        check_fit(FolderSource(folder), checkpoint_shapes(config), folder)
    for wanted in recipe.objective.named_models:
        check_frozen(wanted, config)
    if recipe.lora.adapter is not None:
        with naming("lora.adapter"):
            read_adapter(Path(recipe.lora.adapter))


def build_model(recipe: Recipe, config: DeepseekV4Config, mesh: Mesh, with_weights: bool) -> ParallelModel:
    """The model with random or loaded weights; without `with_weights` a checkpoint will set them all.

    With adapters, which are new here, the frozen weights are always loaded: no checkpoint has them.

    Raises:
        ValueError: the weights are invalid, or an adapter target matches nothing.
    """
    section = recipe.model
    adapted = bool(recipe.lora.targets)
    if section.offload == "stream":
        model = _streamed(recipe, mesh.device)
        return _begun_from(recipe.lora.adapter if with_weights else None, model)
    if recipe.parallel.ep_backend == "deep_ep" and mesh.dims.ep_size > 1:
        check_deep_ep(DTYPES[section.dtype])
    folder = None if section.weights is None else locate(section.weights)
    drafter = recipe.train.drafter
    prepare = preparation(recipe, config, folder)
    numbers = DTYPES[section.dtype], section.numerics
    drops = recipe.lora.dropout > 0
    warmup = recipe.train.indexer_stage == "warmup"
    model = parallelize(config, mesh, recipe.parallel, *numbers, prepare, drops, drafter, warmup)
    if config.dspark_stages and (section.quantized or not drafter):
        model.carried = folder
    if folder is not None and (with_weights or model.has_frozen_base):
        model.load_pretrained(folder)
    elif with_weights or adapted or model.trains_indexers_alone:
        initialize(model.base_shards(), config)
    if adapted:
        init_adapters(model, recipe.seed)
        _begun_from(recipe.lora.adapter if with_weights else None, model)
    check_recipe_optimizer(recipe, model.full_model)
    if recipe.lora.dropout and mesh.rank > 0:
        # a generator per process, as its rows, tokens or layers differ
        torch.manual_seed(recipe.seed + mesh.rank)
    return model


def check_recipe_optimizer(recipe: Recipe, whole: Callable[[], nn.Module]) -> None:
    """Check the optimizer and its groups against the whole model, which is only built if there are groups.

    Raises:
        ValueError: a group has no trainable parameter, or a library is missing.
    """
    check_library(recipe.optimizer)
    parameters = whole().named_parameters() if recipe.optimizer.groups else ()
    check_groups([name for name, parameter in parameters if parameter.requires_grad], recipe.optimizer)


def _begun_from(adapter: str | None, model: ParallelModel) -> ParallelModel:
    """The model, with the values of an existing adapter if one is given.

    Raises:
        ValueError: its files are damaged, or do not match the recipe's adapters.
    """
    if adapter is not None:
        with naming("lora.adapter"):
            load_adapter(model, Path(adapter))
    return model


def preparation(recipe: Recipe, config: DeepseekV4Config, folder: Path | None) -> Prepare:
    """What freezes, quantizes, rounds and adapts each part of the model, before it has memory.

    Frozen weights are quantized to the formats of `folder`, or of the release.

    Raises:
        ValueError: a target of the adapters matches nothing.
    """
    frozen = None
    if recipe.model.quantized:
        frozen = FORMATS["released"].kind if folder is None else FolderSource(folder).kind
    if recipe.lora.targets:
        return adapter_injector(config, recipe.lora, recipe.loss.mtp_weight > 0, frozen)
    if recipe.train.drafter:
        return drafter_trainer(frozen)
    rounds = unchanged if recipe.train.qat == "none" else partial(fake_quantize_modules, format=recipe.train.qat)
    return rounds if recipe.train.indexer == "frozen" else indexer_trainer(recipe.train.indexer_warmup, rounds)


def meta_model(recipe: Recipe, config: DeepseekV4Config) -> DeepseekV4ForCausalLM:
    """The whole model on meta, frozen and with adapters as in training; Hub weights have the released format."""
    model = DeepseekV4ForCausalLM(config, "meta", DTYPES[recipe.model.dtype], drafter=recipe.train.drafter)
    place = None if recipe.model.weights is None else Path(recipe.model.weights)
    preparation(recipe, config, place if place is not None and place.is_dir() else None)(model)
    return model


def weight_notes(recipe: Recipe, tokenizer: Tokenizer) -> Iterator[str]:
    """What is odd about the folder that training starts from, though it can be read."""
    if recipe.model.weights is None:
        return
    folder = locate(recipe.model.weights)
    yield from code_notes(folder)
    yield from drafter_notes(folder)
    if (note := tokenizer_note(folder, tokenizer)) is not None:
        yield note


def _streamed(recipe: Recipe, device: torch.device) -> ParallelModel:
    """A frozen model whose weights are streamed from their files, with new adapters, on one device."""
    section = recipe.model
    assert section.weights is not None, "the recipe was checked"
    model = DeepseekV4ForCausalLM.from_pretrained(
        section.weights, DTYPES[section.dtype], section.numerics, device, quantized=True, streamed=True
    )
    add_adapters(model, recipe.lora, recipe.loss.mtp_weight > 0, recipe.seed)
    recompute_blocks(model, recipe.parallel.recompute, drops=recipe.lora.dropout > 0)
    return ParallelModel.alone(model)


def origin(recipe: Recipe) -> Origin:
    """The base that adapter files name, folder or Hub id and the latter's downloaded commit, and its local folder."""
    weights = recipe.model.weights
    if weights is None:
        return Origin(None, None, dump_recipe(recipe))
    # the Hub's cache keeps a commit's files in snapshots/COMMIT
    place = locate(weights).resolve()
    revision = place.name if not os.path.isdir(weights) and place.parent.name == "snapshots" else None
    return Origin(weights, revision, dump_recipe(recipe), place)
