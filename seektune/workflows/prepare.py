"""What a training run needs before its first step: rows, tokenizer, batches and the model."""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from seektune.checkpoint import Ranks, locate
from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.source import FolderSource
from seektune.data.config import DataConfig
from seektune.data.examples import hellaswag_examples
from seektune.data.hellaswag import HellaswagData, HellaswagRow, load_hellaswag
from seektune.data.loader import Loader, in_order
from seektune.data.packing import Example, fitting
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.evaluate.hellaswag import spread_evenly
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.initialize import initialize
from seektune.parallel.adapters import load_adapter, start_adapters
from seektune.parallel.apply import Prepare, parallelize, unchanged
from seektune.parallel.join import Seat
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.plan import Plan, make_plan, rows_at_a_time
from seektune.parallel.recompute import recompute_blocks
from seektune.recipe.load import dump_recipe
from seektune.recipe.recipe import ModelConfig, Recipe
from seektune.sequence import Batch
from seektune.train.lora import adapting, add_adapters
from seektune.train.trainer import Origin

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Say = Callable[[str], None]
ALONE, ONE_PROCESS = Ranks(None), Mesh.alone().plan


@dataclass(frozen=True)
class Lesson:
    """The data of a run in the form that training reads."""

    tokenizer: Tokenizer
    loader: Loader
    validation: list[Batch]
    questions: list[HellaswagRow]
    """Validation rows of the exam; `validation` teaches their right endings."""
    source: str
    rows: int
    """Rows that are trained on."""
    digest: str
    """Of their tokens and labels, in order: a checkpoint's position means something only in the same rows."""


def prepare_data(
    recipe: Recipe, data: HellaswagData, config: DeepseekV4Config, say: Say, plan: Plan = ONE_PROCESS
) -> Lesson:
    """Rows into batches.

    Raises:
        ValueError: an example does not fit into a row, or a step's rows do not fit the processes.
    """
    batch = recipe.batch
    rows = rows_at_a_time(plan, recipe.parallel, config, batch.global_size, batch.micro_size)
    if rows != batch.micro_size:
        own = batch.global_size // plan.data_size
        say(f"note: micro-batches of {rows} rows, not {batch.micro_size}, of the {own} that a process gets in a step")
        batch = batch.model_copy(update={"micro_size": rows})
    tokenizer = load_tokenizer(config.vocab_size)
    training = _examples(data.train, tokenizer, recipe, "training", say)
    questions = spread_evenly(data.validation, recipe.evaluate.limit)
    held_out = _examples(questions, tokenizer, recipe, "validation", say)
    # neighbours of one length leave little padding
    held_out.sort(key=lambda example: len(example.tokens))
    return Lesson(
        tokenizer=tokenizer,
        loader=Loader(training, batch, recipe.seed, tokenizer.pad_id),
        validation=in_order(held_out, recipe.batch, tokenizer.pad_id),
        questions=questions,
        source=data.source,
        rows=len(training),
        digest=_digest(training),
    )


def read_rows(section: DataConfig, cache_dir: Path, say: Say, ranks: Ranks = ALONE) -> HellaswagData:
    """The rows that the recipe names; says where they come from. What is fetched is fetched by the first process.

    Raises:
        ValueError: a file or row is not as it should be.
        OSError: the rows are not here and no source answers.
    """
    found: list[HellaswagData] = []
    ranks.first(lambda: found.append(load_hellaswag(section.path, cache_dir, say)))
    return found[0] if found else load_hellaswag(section.path, cache_dir, say)


def meet(recipe: Recipe, config: DeepseekV4Config, seat: Seat) -> Mesh:
    """The mesh that the recipe asks for.

    Raises:
        ValueError: these processes, this model and this batch do not make one.
    """
    recipe.check_world(seat.world)
    return Mesh.of(make_plan(recipe.parallel, seat.world, config), seat.device)


def read_config(section: ModelConfig) -> DeepseekV4Config:
    """The architecture; asks the Hub where only weights there are named.

    Raises:
        ValueError: there is none, or it contradicts the preset beside it.
    """
    known = section.architecture()
    if section.weights is None or Path(section.weights).is_dir():
        assert known is not None, "the recipe names no architecture"
        return known
    try:
        folder = locate(section.weights)
    except ValueError as error:
        raise ValueError(f"model.weights: {error}") from None
    found = DeepseekV4Config.from_pretrained(folder)
    section.agree(found)
    return found


def build_model(recipe: Recipe, config: DeepseekV4Config, mesh: Mesh, with_weights: bool) -> ParallelModel:
    """The model with random or given weights; not `with_weights` where a checkpoint will set them all.

    With adapters, which are fresh here, the rest is frozen and always read: no checkpoint holds it.

    Raises:
        ValueError: its weights are not as they should be, or adapters ask for what it does not have.
    """
    section, adapted = recipe.model, bool(recipe.lora.targets)
    if section.offload == "stream":
        model = _streamed(recipe, mesh.device)
        return _begun_from(recipe.lora.adapter if with_weights else None, model)
    folder = None if section.weights is None else locate(section.weights)
    prepare = frozen_form(recipe, config, folder) if adapted else unchanged
    numbers = DTYPES[section.dtype], section.numerics
    model = parallelize(config, mesh, recipe.parallel, *numbers, prepare, drops=recipe.lora.dropout > 0)
    if folder is not None and (with_weights or adapted):
        model.load_pretrained(folder)
    elif with_weights or adapted:
        initialize(model.base(), config)
    if adapted:
        start_adapters(model, recipe.seed)
        _begun_from(recipe.lora.adapter if with_weights else None, model)
    if recipe.lora.dropout and mesh.rank > 0:
        # each process drops with dice of its own, as its rows, tokens or layers are its own
        torch.manual_seed(recipe.seed + mesh.rank)
    return model


def _begun_from(adapter: str | None, model: ParallelModel) -> ParallelModel:
    """The model, with the values of an older run's adapter if one is named.

    Raises:
        ValueError: its files are damaged, or are not of the adapters that the recipe asks for.
    """
    if adapter is not None:
        try:
            load_adapter(model, Path(adapter))
        except ValueError as error:
            raise ValueError(f"lora.adapter: {error}") from None
    return model


def frozen_form(recipe: Recipe, config: DeepseekV4Config, folder: Path | None) -> Prepare:
    """What freezes a part of the model in the form in which `folder` has it, or the release, and adds adapters.

    Raises:
        ValueError: a target of the adapters matches nothing.
    """
    kind_of = FORMATS["released"].kind if folder is None else FolderSource(folder).kind
    return adapting(config, recipe.lora, recipe.loss.mtp_weight > 0, kind_of if recipe.model.packed else None)


def laid_out(recipe: Recipe, config: DeepseekV4Config) -> DeepseekV4ForCausalLM:
    """The whole model without memory, frozen and adapted as training has it; weights of the Hub are as released."""
    model = DeepseekV4ForCausalLM(config, "meta", DTYPES[recipe.model.dtype])
    if recipe.lora.targets:
        place = None if recipe.model.weights is None else Path(recipe.model.weights)
        frozen_form(recipe, config, place if place is not None and place.is_dir() else None)(model)
    return model


def _streamed(recipe: Recipe, device: torch.device) -> ParallelModel:
    """A frozen model whose weights stay in their files, with fresh adapters, on one device."""
    section = recipe.model
    assert section.weights is not None, "the recipe was checked"
    model = DeepseekV4ForCausalLM.from_pretrained(
        section.weights, DTYPES[section.dtype], section.numerics, device, packed=True, streamed=True
    )
    add_adapters(model, recipe.lora, recipe.loss.mtp_weight > 0, recipe.seed)
    recompute_blocks(model, recipe.parallel.recompute, drops=recipe.lora.dropout > 0)
    return ParallelModel.alone(model)


def origin(recipe: Recipe) -> Origin:
    """What adapter files say of their base: its name and, for one from the Hub, the commit that was fetched."""
    weights = recipe.model.weights
    if weights is None:
        return Origin(None, None, dump_recipe(recipe))
    # the Hub's cache keeps a commit's files in snapshots/COMMIT
    place = locate(weights).resolve()
    revision = place.name if not Path(weights).is_dir() and place.parent.name == "snapshots" else None
    return Origin(weights, revision, dump_recipe(recipe))


def choose_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(array("q", [len(example.tokens), *example.tokens, *example.labels]).tobytes())
    return digest.hexdigest()


def _examples(rows: Sequence[HellaswagRow], tokenizer: Tokenizer, recipe: Recipe, what: str, say: Say) -> list[Example]:
    kept, left_out = fitting(hellaswag_examples(rows, tokenizer), recipe.batch.length, recipe.data.overlong)
    if left_out:
        say(f"{left_out:,} of {len(rows):,} {what} rows are longer than batch.length {recipe.batch.length}: left out")
    return kept
