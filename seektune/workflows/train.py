"""The verb `train`: from a recipe to a run folder with trained weights and a report."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from seektune import __version__
from seektune.evaluate.loss import validation_loss
from seektune.recipe.load import dump_recipe
from seektune.recipe.recipe import Recipe
from seektune.train.files import write_whole
from seektune.train.interrupt import Interrupted, Interruption
from seektune.train.metrics import MetricsLog
from seektune.train.report import REPORT, write_report
from seektune.train.trainer import Trainer, TrainSettings
from seektune.workflows.console import say
from seektune.workflows.exam import hold_exam, read_exam, write_exams
from seektune.workflows.prepare import (
    build_model,
    choose_device,
    origin,
    prepare_data,
    read_config,
    read_rows,
    refuse_too_large,
)
from seektune.workflows.resume import Start, find_start, product_of
from seektune.workflows.run_folder import RECIPE, choose_folder, made
from seektune.workflows.tell import describe, farewell, story, summary


def train(recipe: Recipe, name: str, notes: Sequence[str], cache_dir: Path) -> Path:
    """Train as the recipe says and leave everything in a run folder, whose path is returned.

    A run that was interrupted goes on from its newest checkpoint.

    Args:
        recipe: what to do.
        name: opens the name of the run folder where the recipe names none.
        notes: sentences of the recipe's reader, shown first.
        cache_dir: keeps fetched data.

    Raises:
        ValueError: a mistake in recipe, data or weights; no folder is left behind.
        NotFiniteError: a loss or gradient is not finite.
        Interrupted: a signal asked to stop; what was done is saved.
        OSError: something could not be read, fetched or written; what was written before stays.
    """
    folder = choose_folder(recipe.run_dir, name, datetime.now())
    for note in notes:
        say(note)
    with Interruption() as interruption:
        try:
            start = find_start(recipe, folder, say)
            if start.finished:
                say(f"{folder} holds this run, finished: {folder / REPORT}")
                return folder
            _run(recipe, name, folder, start, cache_dir, interruption)
        except Interrupted as signal:
            raise Interrupted(farewell(str(signal), folder)) from None
    return folder


def _run(recipe: Recipe, name: str, folder: Path, start: Start, cache_dir: Path, interruption: Interruption) -> None:
    with made(folder):
        torch.manual_seed(recipe.seed)
        device = choose_device()
        config = read_config(recipe.model)
        refuse_too_large(recipe, config, device)
        data = read_rows(recipe.data, cache_dir, say)
        lesson = prepare_data(recipe, data, config, say)
        model = build_model(recipe, config, device, with_weights=start.checkpoint is None)
        facts = describe(recipe, model, lesson)
        before = read_exam(folder, "before") if start.checkpoint is not None else None
        if start.checkpoint is None:
            before = hold_exam(recipe.evaluate.before, "before", model, lesson, recipe.evaluate)
    write_whole(folder / RECIPE, dump_recipe(recipe).encode())
    write_exams(folder, before, None)
    validate = partial(validation_loss, model, lesson.validation)
    trainer = Trainer(model, lesson.tokenizer, lesson.loader, _settings(recipe), folder, validate, interruption)
    if start.checkpoint is not None:
        trainer.resume(start.checkpoint)
    with MetricsLog(folder, recipe.steps, recipe.logging, trainer.step, trainer.log_state) as log:
        losses = trainer.fit(recipe.steps, log)
    # weights first: an exam that fails must not cost the training
    product = folder / product_of(recipe)
    with interruption.deferred():
        trainer.export(product)
    after = hold_exam(recipe.evaluate.after, "after", model, lesson, recipe.evaluate)
    with interruption.deferred():
        write_exams(folder, before, after)
        report = write_report(folder, story(name, facts, dump_recipe(recipe), before, after))
    summary(losses, before, after, product, report)


def _settings(recipe: Recipe) -> TrainSettings:
    return TrainSettings(
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        loss=recipe.loss,
        checkpoint=recipe.checkpoint,
        guard=recipe.guard,
        validate_every=recipe.evaluate.every,
        seed=recipe.seed,
        origin=origin(recipe),
        record={
            "recipe": recipe.model_dump(mode="json"),
            "versions": {"seektune": __version__, "torch": torch.__version__},
        },
    )
