"""The verb `train`: from a recipe to a run folder with trained weights and a report."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from seektune.data.hellaswag import default_cache_dir
from seektune.evaluate.loss import validation_loss
from seektune.recipe.load import dump_recipe
from seektune.recipe.recipe import Recipe
from seektune.train.files import write_whole
from seektune.train.metrics import MetricsLog
from seektune.train.report import write_report
from seektune.train.trainer import MODEL, Trainer, TrainSettings
from seektune.workflows.exam import hold_exam, write_exams
from seektune.workflows.prepare import build_model, choose_device, prepare_data, read_config, read_rows
from seektune.workflows.run_folder import RECIPE, choose_folder, made
from seektune.workflows.tell import describe, say, story, summary


def train(recipe: Recipe, name: str = "run", notes: Sequence[str] = (), cache_dir: Path | None = None) -> Path:
    """Train as the recipe says and leave everything in a new run folder, whose path is returned.

    Args:
        recipe: what to do.
        name: opens the name of the run folder where the recipe names none.
        notes: sentences of the recipe's reader, shown first.
        cache_dir: keeps fetched data; None for the user's cache folder.

    Raises:
        ValueError: a mistake in recipe, data or weights; no folder is left behind.
        NotFiniteError: a loss or gradient is not finite.
        OSError: something could not be read, fetched or written; what was written before stays.
    """
    folder = choose_folder(recipe.run_dir, name, datetime.now())
    for note in notes:
        say(note)
    with made(folder):
        torch.manual_seed(recipe.seed)
        data = read_rows(recipe.data, cache_dir or default_cache_dir({}), say)
        config = read_config(recipe.model)
        lesson = prepare_data(recipe, data, config, say)
        model = build_model(recipe, config, choose_device())
        facts = describe(recipe, model, lesson)
        before = hold_exam(recipe.evaluate.before, "before", model, lesson, recipe.evaluate)
    try:
        write_whole(folder / RECIPE, dump_recipe(recipe).encode())
        write_exams(folder, before, None)
        validate = partial(validation_loss, model, lesson.validation)
        trainer = Trainer(model, lesson.tokenizer, _settings(recipe), folder, validate)
        with MetricsLog(folder, recipe.steps, recipe.logging) as log:
            losses = trainer.fit(lesson.loader.next_step, recipe.steps, log)
        # weights first: an exam that fails must not cost the training
        trainer.export(folder / MODEL)
        after = hold_exam(recipe.evaluate.after, "after", model, lesson, recipe.evaluate)
        write_exams(folder, before, after)
        report = write_report(folder, story(name, facts, dump_recipe(recipe), before, after))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted by Ctrl-C; what was written so far stays in {folder}") from None
    summary(losses, before, after, folder / MODEL, report)
    return folder


def _settings(recipe: Recipe) -> TrainSettings:
    return TrainSettings(
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        loss=recipe.loss,
        checkpoint=recipe.checkpoint,
        validate_every=recipe.evaluate.every,
        seed=recipe.seed,
    )
