"""The verb `train`: from a recipe to a run folder with trained weights and a report."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from seektune import __version__
from seektune.data.datasets.dataset import DataCache
from seektune.evaluate.loss import validation_loss
from seektune.io.console import say, speaking
from seektune.io.files import write_whole
from seektune.model.config import DeepseekV4Config
from seektune.parallel.mesh import Mesh
from seektune.parallel.process_group import ALONE, ProcessSlot, process_group
from seektune.recipe.load import dump_recipe
from seektune.recipe.recipe import Recipe
from seektune.run.build import build_mesh, build_model, origin, read_config
from seektune.run.data import TrainData, prepare_data
from seektune.run.evals import Scores, read_evals, run_eval, write_evals
from seektune.run.model_card import put_card, run_card
from seektune.run.resume import RunStart, find_start, product_of, refuse_other_rows
from seektune.run.run_dir import RECIPE, choose_folder, held
from seektune.run.summary import describe, report_text, stopped_message, summary
from seektune.signals import Interrupted, Interruption
from seektune.train.checkpoints import set_aside_later
from seektune.train.metrics import MetricsLog, RunLog, SilentLog
from seektune.train.report import REPORT, write_report
from seektune.train.trainer import CHECKPOINTS, Trainer, TrainSettings
from seektune.workflows.preflight import check_memory


def train(recipe: Recipe, name: str, notes: Sequence[str], cache_dir: Path, slot: ProcessSlot = ALONE) -> Path:
    """Train as the recipe says and leave everything in a run folder, whose path is returned.

    A run that was interrupted goes on from its newest checkpoint. Of several processes each calls this; the first one
    speaks, decides and writes what is not in pieces.

    Args:
        recipe: what to do.
        name: opens the name of the run folder where the recipe names none.
        notes: sentences of the recipe's reader, shown first.
        cache_dir: keeps fetched data.
        slot: the place of this process in a job.

    Raises:
        ValueError: a mistake in recipe, data or weights; no folder is left behind.
        NotFiniteError: a loss or gradient is not finite.
        Interrupted: a signal asked to stop; what was done is saved.
        OSError: something could not be read, fetched or written; what was written before stays.
    """
    folder = choose_folder(recipe.run_dir, name, datetime.now())
    with Interruption(worker=slot.world > 1) as interruption, process_group(slot), ExitStack() as stack:
        try:
            config = read_config(recipe.model)
            mesh = build_mesh(recipe, config, slot)
            stack.enter_context(speaking(mesh.is_main))
            for note in notes:
                say(note)
            mesh.ranks.first(lambda: stack.enter_context(held(folder)))
            start = mesh.ranks.first(lambda: find_start(recipe, folder, say))
            if start.finished:
                say(f"{folder} holds this run, finished: {folder / REPORT}")
                return folder
            _run(recipe, name, folder, start, cache_dir, interruption, mesh, config)
        except Interrupted as signal:
            raise Interrupted(stopped_message(str(signal), folder)) from None
    return folder


def _run(
    recipe: Recipe,
    name: str,
    folder: Path,
    start: RunStart,
    cache_dir: Path,
    interruption: Interruption,
    mesh: Mesh,
    config: DeepseekV4Config,
) -> None:
    torch.manual_seed(recipe.seed)
    check_memory(recipe, config, mesh.dims.world, nodes=1)
    lesson = prepare_data(recipe, config, DataCache(cache_dir, say), mesh)
    # from here on processes wait for each other, and none leaves alone
    with nullcontext() if mesh.axes is None else interruption.shielded():
        _teach(recipe, name, folder, start, lesson, interruption, mesh, config)


def _teach(
    recipe: Recipe,
    name: str,
    folder: Path,
    start: RunStart,
    lesson: TrainData,
    interruption: Interruption,
    mesh: Mesh,
    config: DeepseekV4Config,
) -> None:
    leave = partial(interruption.leave_together, mesh.any)
    model = build_model(recipe, config, mesh, with_weights=start.checkpoint is None)
    facts = describe(recipe, model, lesson)
    before = read_evals(folder, "before", lesson.tasks)
    if start.checkpoint is None:
        before = run_eval(recipe.evaluate.before, "before", model, lesson, recipe.evaluate, leave)
    validate = partial(validation_loss, model, lesson.validation)
    settings = _settings(recipe, lesson)
    trainer = Trainer(model, lesson.tokenizer, lesson.loader, settings, folder, validate, interruption)
    if start.checkpoint is not None:
        refuse_other_rows(start.checkpoint, lesson.digest)
        trainer.resume(start.checkpoint)
    with interruption.deferred():
        mesh.ranks.first(lambda: _begin(recipe, folder, trainer.step, before))
    product = folder / product_of(recipe)
    with _open_log(recipe, folder, trainer) as log:
        losses = _fit(trainer, recipe.steps, log, product)
    # weights before the exam: one that fails must not cost the training
    card = partial(run_card, folder, recipe, facts, before)
    with interruption.deferred():
        trainer.export(product)
        mesh.ranks.first(lambda: put_card(product, card({})))
    leave()
    after = run_eval(recipe.evaluate.after, "after", model, lesson, recipe.evaluate, leave)
    if mesh.is_main:
        with interruption.deferred():
            write_evals(folder, before, after)
            put_card(product, card(after))
            report = write_report(folder, report_text(name, facts, dump_recipe(recipe), before, after))
        summary(losses, before, after, product, report, recipe)


def _begin(recipe: Recipe, folder: Path, step: int, before: Scores) -> None:
    """Make the folder that of this run, which goes on after `step`; until here it is as it was."""
    for left in set_aside_later(folder / CHECKPOINTS, step):
        say(f"note: the run leaves this checkpoint and goes on after step {step}: {left}")
    # the last sign of a finished run, which this is no more
    (folder / REPORT).unlink(missing_ok=True)
    write_whole(folder / RECIPE, dump_recipe(recipe).encode())
    write_evals(folder, before, {})


@contextmanager
def _open_log(recipe: Recipe, folder: Path, trainer: Trainer) -> Iterator[RunLog]:
    """The record of the run; only the first process writes one."""
    mesh = trainer.model.mesh
    with ExitStack() as stack:

        def write() -> MetricsLog:
            log = MetricsLog(folder, recipe.steps, recipe.logging, trainer.step, trainer.log_state)
            return stack.enter_context(log)

        own = write() if mesh.is_main else None
        validations = mesh.ranks.first(lambda: {} if own is None else own.validations())
        yield SilentLog(validations) if own is None else own


def _fit(trainer: Trainer, steps: int, log: RunLog, product: Path) -> tuple[float, float]:
    """Train. The state of the last step comes before the weights, as they can be made from it; where there is no room
    for it, there may be for them, a fraction of its size.
    """
    try:
        return trainer.fit(steps, log)
    except OSError as error:
        # what only this process could not write, the others know nothing of, and export nothing
        if trainer.step < steps or (trainer.model.mesh.axes is not None and not trainer.cannot_save):
            raise
        trainer.export(product)
        raise OSError(f"{error}; the trained weights are in {product}") from None


def _settings(recipe: Recipe, lesson: TrainData) -> TrainSettings:
    return TrainSettings(
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        loss=recipe.loss,
        checkpoint=recipe.checkpoint,
        guard=recipe.guard,
        validate_every=recipe.evaluate.every,
        seed=recipe.seed,
        origin=origin(recipe) if recipe.lora.targets else None,
        record={
            "recipe": recipe.model_dump(mode="json"),
            "versions": {"seektune": __version__, "torch": torch.__version__},
            "rows": lesson.digest,
        },
    )
