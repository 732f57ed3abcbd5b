"""The command `train`: from a recipe to a run folder with trained weights and a report."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from seektune import __version__
from seektune.checkpoint.carried import carried_digest
from seektune.data.chat_format.template import ChatTokenizer
from seektune.data.datasets.dataset import DataCache
from seektune.evaluate.loss import held_out_loss
from seektune.evaluate.objective_loss import held_out_objective
from seektune.io.atomic import write_atomically
from seektune.io.console import say, speaking
from seektune.io.run_files import CHECKPOINTS, RECIPE, REPORT
from seektune.kernels import batch_invariant_kernels, training_kernels
from seektune.model.distillation import OnPolicyDistillation
from seektune.model.objective import LogprobObjective, Objective
from seektune.model.variants import encoding_of
from seektune.parallel.model import ParallelModel
from seektune.parallel.process_group import ALONE, ProcessSlot, process_group
from seektune.parallel.reference import ReferenceModel
from seektune.recipe.checks import check_architecture
from seektune.recipe.load import dump_recipe
from seektune.recipe.recipe import Recipe
from seektune.run.build import build_mesh, build_model, check_sources, origin, read_config, weight_notes
from seektune.run.context import RunContext
from seektune.run.data import TrainData, prepare_data
from seektune.run.during import TrainingEvaluations
from seektune.run.evals import Scores, read_evals, run_eval, write_evals
from seektune.run.held_out_divergence import held_out_divergence
from seektune.run.held_out_reward import held_out_reward
from seektune.run.model_card import put_card, run_card
from seektune.run.objective import make_objective
from seektune.run.own_answers import with_own_answers, write_answers
from seektune.run.reference import fill_reference, make_reference
from seektune.run.resume import find_start, refuse_other_rows, refuse_other_stages
from seektune.run.rollouts import RolloutStream, make_sampler
from seektune.run.run_dir import choose_folder, held
from seektune.run.streams import left_out_lines
from seektune.run.summary import describe, report_text, stopped_message, summary
from seektune.run.teacher_files import fill_teacher_files
from seektune.run.tracking import RunTrackers, make_trackers, open_trackers, send_scores, write_tracking
from seektune.signals import Interrupted, Interruption
from seektune.train.checkpoints import set_aside_later
from seektune.train.config import LossConfig
from seektune.train.metrics import MetricsLog
from seektune.train.report import write_report
from seektune.train.report_text import ReportText, write_texts
from seektune.train.rollout_objectives import RolloutConfig
from seektune.train.run_log import RunLog, SilentLog
from seektune.train.settings import BatchStream, TrainSettings
from seektune.train.trackers.tracker_thread import TrackerThread
from seektune.train.trainer import Trainer
from seektune.workflows.preflight import check_memory


def train(recipe: Recipe, name: str, notes: Sequence[str], cache_dir: Path, slot: ProcessSlot = ALONE) -> Path:
    """Run the training of a recipe; everything is written to a run folder, whose path is returned.

    An interrupted run resumes from its newest checkpoint. Every process of a job calls this; rank 0 prints, decides
    and writes everything that is not sharded.

    Args:
        recipe: the settings of the run.
        name: prefix of the run folder's name, if the recipe has no `run_dir`.
        notes: messages of the recipe loader, printed first.
        cache_dir: keeps downloaded data.
        slot: the rank and device of this process.

    Raises:
        ValueError: recipe, data or weights are invalid; no folder is left behind.
        NotFiniteError: a loss or gradient is not finite.
        Interrupted: stopped by a signal; the state is saved.
        OSError: reading, downloading or writing failed; what was written before stays.
    """
    folder = choose_folder(recipe.run_dir, name, datetime.now())
    with Interruption(worker=slot.worker) as interruption, process_group(slot), ExitStack() as stack:
        try:
            config = read_config(recipe.model)
            recipe = check_architecture(recipe, config)
            mesh = build_mesh(recipe, config, slot)
            stack.enter_context(speaking(mesh.is_main))
            stack.enter_context(training_kernels())
            stack.enter_context(batch_invariant_kernels(recipe.model.batch_invariant))
            for note in notes:
                say(note)
            mesh.ranks.first(lambda: stack.enter_context(held(folder)))
            start = mesh.ranks.first(lambda: find_start(recipe, folder, say))
            if start.finished:
                say(f"{folder} holds this run, finished: {folder / REPORT}")
            else:
                _run(RunContext(recipe, name, folder, start, config, mesh, interruption), cache_dir)
        except Interrupted as signal:
            raise Interrupted(stopped_message(str(signal), folder)) from None
        except RuntimeError as error:
            if interruption.name is None or slot.world == 1:
                raise
            # another process stopped first, so communication with it failed here; a failed save is an OSError
            raise Interrupted(stopped_message(interruption.name, folder)) from error
    return folder


def _run(run: RunContext, cache_dir: Path) -> None:
    """A training run, in order."""
    recipe = run.recipe
    mesh = run.mesh
    torch.manual_seed(recipe.seed)
    check_memory(recipe, run.config, mesh.dims.world, nodes=1)
    trackers = make_trackers(run)
    if run.is_fresh or recipe.lora.targets or run.config.dspark_stages:
        check_sources(recipe, run.config)
    data = prepare_data(recipe, run.config, DataCache(cache_dir, say), mesh)
    for note in weight_notes(recipe, data.tokenizer):
        say(note)
    with run.shielded_if_parallel():
        fill_teacher_files(run, data)
        model = build_model(recipe, run.config, mesh, with_weights=run.is_fresh)
        if recipe.train.drafter:
            data = with_own_answers(run, data, model)
        facts = describe(recipe, model, data)
        before = _eval_before(run, model, data)
        reference = make_reference(recipe, model)
        trainer = _make_trainer(run, model, data, reference)
        texts = partial(report_text, run.name, facts, dump_recipe(recipe), before)
        _begin_folder(run, trainer.step, before, data, trackers, texts({}))
        fill_reference(run, model, data, reference)
        with open_trackers(trackers) as threads:
            send_scores(threads, 0, before if run.is_fresh else {})
            with _open_log(run, trainer, threads) as log:
                losses = _fit(run, trainer, log)
            for line in left_out_lines(data.loader):
                say(line)
            card = partial(run_card, run.folder, recipe, facts, before)
            _export(run, trainer, card)
            after = run_eval(recipe.evaluate.after, "after", run, model, data, recipe.evaluate)
            send_scores(threads, recipe.steps, after)
        if mesh.is_main:
            report = _write_results(run, before, after, card, texts(after))
            summary(losses, before, after, run.product, report, recipe)


def _eval_before(run: RunContext, model: ParallelModel, data: TrainData) -> Scores:
    """The scores before training; those of a resumed run are read from its folder."""
    if not run.is_fresh:
        return read_evals(run.folder, "before", data.tasks.scored)
    evaluate = run.recipe.evaluate
    return run_eval(evaluate.before, "before", run, model, data, evaluate)


def _make_trainer(run: RunContext, model: ParallelModel, data: TrainData, reference: ReferenceModel) -> Trainer:
    """The trainer, at the step where the run starts."""
    section = run.recipe.objective
    objective = make_objective(section, reference, run.recipe.loss.z_weight)
    validate = partial(held_out_loss, model, data.validation, data.validation_by_dataset)
    if section.compares:
        assert isinstance(objective, LogprobObjective), "answers are compared by their log-probabilities"
        rows = data.validation, data.validation_by_dataset
        validate = partial(held_out_objective, model, objective, reference, *rows)
    stream: BatchStream = data.loader
    if isinstance(section, RolloutConfig):
        sampler = make_sampler(run, data, section)
        stream = RolloutStream(run, model, data, sampler)
        validate = partial(held_out_reward, run, model, data, sampler)
        if isinstance(objective, OnPolicyDistillation):
            validate = partial(held_out_divergence, run, model, data, sampler, objective, reference)
    carried = None if model.is_adapted() or model.trains_drafter else model.carried
    stages = run.mesh.ranks.first(lambda: None if carried is None else carried_digest(carried))
    settings = _settings(run.recipe, data, objective, stages)
    tokenizer = ChatTokenizer(data.tokenizer, encoding_of(run.config))
    evaluate = TrainingEvaluations(run, model, data)
    place = run.folder, validate, run.interruption, evaluate
    trainer = Trainer(model, tokenizer, stream, settings, *place, reference)
    if run.start.checkpoint is not None:
        refuse_other_rows(run.start.checkpoint, data.digest)
        refuse_other_stages(run.start.checkpoint, stages)
        trainer.resume(run.start.checkpoint)
    return trainer


def _begin_folder(
    run: RunContext, step: int, before: Scores, data: TrainData, trackers: RunTrackers | None, texts: ReportText
) -> None:
    """Write the recipe and first scores into the run folder, which was unchanged until here; the run is at `step`."""

    def begin() -> None:
        for left in set_aside_later(run.folder / CHECKPOINTS, step):
            say(f"note: resuming after step {step}; this later checkpoint is set aside: {left}")
        # the report marks a finished run
        (run.folder / REPORT).unlink(missing_ok=True)
        write_atomically(run.folder / RECIPE, dump_recipe(run.recipe).encode())
        write_evals(run.folder, before, {})
        write_texts(run.folder, texts)
        if data.own_answers is not None:
            write_answers(run.folder, data.own_answers)
        if trackers is not None:
            write_tracking(run.folder, trackers.run)

    with run.interruption.deferred():
        run.mesh.ranks.first(begin)


def _fit(run: RunContext, trainer: Trainer, log: RunLog) -> tuple[float, float]:
    """Train; returns the first and the last validation loss.

    The last checkpoint is written before the weights, which can be exported from it; if the disk is too full for the
    checkpoint, the weights, a fraction of its size, may still fit.
    """
    steps = run.recipe.steps
    try:
        return trainer.fit(steps, log)
    except OSError as error:
        # an error of this process alone: the others do not know of it and would not take part in the export
        if trainer.step < steps or (run.mesh.axes is not None and not trainer.cannot_save):
            raise
        trainer.export(run.product)
        raise OSError(f"{error}; the trained weights are in {run.product}") from None


@contextmanager
def _open_log(run: RunContext, trainer: Trainer, trackers: Sequence[TrackerThread]) -> Iterator[RunLog]:
    """The log of the run; only rank 0 writes one."""
    recipe = run.recipe
    with ExitStack() as stack:

        def write() -> MetricsLog:
            log = MetricsLog(run.folder, recipe.steps, recipe.logging, trainer.step, trainer.log_state, trackers)
            return stack.enter_context(log)

        own = write() if run.mesh.is_main else None
        validations = run.mesh.ranks.first(lambda: {} if own is None else own.validations())
        yield SilentLog(validations) if own is None else own


def _export(run: RunContext, trainer: Trainer, card: Callable[[Scores], str]) -> None:
    """Write the weights, with a model card without scores, before the evaluation, which may fail."""
    with run.interruption.deferred():
        trainer.export(run.product)
        run.mesh.ranks.first(lambda: put_card(run.product, card({})))
    run.stop_if_signalled()


def _write_results(
    run: RunContext, before: Scores, after: Scores, card: Callable[[Scores], str], texts: ReportText
) -> Path:
    """Write the scores, the model card with them, and the report, whose path is returned."""
    with run.interruption.deferred():
        write_evals(run.folder, before, after)
        put_card(run.product, card(after))
        write_texts(run.folder, texts)
        return write_report(run.folder, texts)


def _settings(recipe: Recipe, data: TrainData, objective: Objective, stages: str | None) -> TrainSettings:
    return TrainSettings(
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        loss=LossConfig(mtp_weight=0.0) if recipe.train.drafter else recipe.loss,
        checkpoint=recipe.checkpoint,
        guard=recipe.guard,
        validate_every=recipe.evaluate.every,
        seed=recipe.seed,
        update_ratios_every=recipe.logging.update_ratios_every,
        noise_scale_every=recipe.logging.noise_scale_every,
        drafter_anchors=recipe.train.drafter_anchors if recipe.train.drafter else None,
        indexers=recipe.train.indexer_stage,
        objective=objective,
        origin=origin(recipe),
        export_format=recipe.export_format,
        record={
            "recipe": recipe.model_dump(mode="json"),
            "versions": {"seektune": __version__, "torch": torch.__version__},
            "rows": data.digest,
            "stages": stages,
        },
    )
