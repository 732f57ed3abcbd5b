"""Checkpoints that run beside the model of a run without being trained: teachers, and reference models."""

from functools import partial
from pathlib import Path

from seektune.checkpoint.load import check_fit
from seektune.checkpoint.source import FolderSource
from seektune.data.other_tokenizer import tokenizer_note
from seektune.data.tokenizer import load_tokenizer
from seektune.model.causal_lm import DeepseekV4ForCausalLM, checkpoint_shapes
from seektune.model.config import DeepseekV4Config
from seektune.model.device import DTYPES
from seektune.model.quantized import KindOf, quantize_modules
from seektune.model.transformer import TransformerPart
from seektune.parallel.config import ParallelConfig
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.parallelize import parallelize
from seektune.recipe.recipe import Recipe
from seektune.run.named_key import locate_named, naming
from seektune.train.objective_section import FrozenModel


def check_frozen(wanted: FrozenModel, config: DeepseekV4Config) -> None:
    """Check by its headers that a checkpoint is whole, and that its tokens are those of the model with this config.

    Raises:
        ValueError: there is no such checkpoint, a file or tensor is missing or damaged, or the vocabularies differ.
        OSError: the Hub cannot be reached.
    """
    folder, other = _located(wanted)
    if other.vocab_size != config.vocab_size:
        raise ValueError(
            f"{wanted.key} {wanted.checkpoint} predicts {other.vocab_size} tokens, but the model "
            f"{config.vocab_size}; both need the same vocabulary"
        )
    if (difference := _other_tokens(folder, config)) is not None:
        raise ValueError(
            f"{wanted.key} {wanted.checkpoint} was made for other tokens than the model ({difference}); both need the "
            "same vocabulary; if its ids are the model's, remove its tokenizer.json"
        )
    check_fit(FolderSource(folder), checkpoint_shapes(other), folder)


def _located(wanted: FrozenModel) -> tuple[Path, DeepseekV4Config]:
    """The folder and the config of a checkpoint; messages begin with its key."""
    folder = locate_named(wanted.key, wanted.checkpoint)
    with naming(wanted.key):
        return folder, DeepseekV4Config.from_pretrained(folder)


def _other_tokens(folder: Path, config: DeepseekV4Config) -> str | None:
    """How the folder's tokenizer differs from that of the data; None if it does not, or one of them is missing."""
    try:
        tokenizer = load_tokenizer(config.vocab_size)
    except (OSError, ValueError):  # the data are prepared with it, and say so
        return None
    note = tokenizer_note(folder, tokenizer)
    return None if note is None else note.removeprefix("note: ").partition(";")[0]


def load_frozen(recipe: Recipe, wanted: FrozenModel, mesh: Mesh) -> ParallelModel:
    """The checkpoint on the mesh of the run, without its MTP block or DSpark stages, which nothing reads; collective.

    Raises:
        ValueError: its layout does not fit the mesh.
    """
    folder, config = _located(wanted)
    numbers = DTYPES[recipe.model.dtype], recipe.model.numerics
    if wanted.streamed:
        assert mesh.dims.world == 1, "the recipe was checked"
        whole = DeepseekV4ForCausalLM.from_pretrained(
            folder, *numbers, mesh.device, quantized=True, streamed=True, backbone=True
        )
        return ParallelModel.alone(whole)
    prepare = partial(freeze, kind_of=FolderSource(folder).kind if wanted.quantized else None)
    model = parallelize(config.without_drafter(), mesh, frozen_layout(recipe.parallel), *numbers, prepare)
    model.load_pretrained(folder, config)
    return model


def frozen_layout(parallel: ParallelConfig) -> ParallelConfig:
    """The layout of a run as a checkpoint beside its model has it, whose layers are split evenly over the pipeline."""
    pipeline = parallel.pipeline.model_copy(update={"layers_per_stage": None})
    return parallel.model_copy(update={"recompute": "none", "pipeline": pipeline})


def meta_frozen(recipe: Recipe, wanted: FrozenModel) -> DeepseekV4ForCausalLM:
    """The whole checkpoint on the meta device, with the formats in which it is held."""
    folder, config = _located(wanted)
    config = config.without_drafter()
    model = DeepseekV4ForCausalLM(config, "meta", DTYPES[recipe.model.dtype])
    freeze(model, FolderSource(folder).kind if wanted.quantized else None)
    return model


def freeze(part: TransformerPart, kind_of: KindOf | None) -> None:
    """Freeze a part of a model, and keep its weights in the formats that `kind_of` says."""
    if kind_of is not None:
        quantize_modules(part, kind_of)
    part.requires_grad_(False)
