"""Evaluations during training: tasks at their own cadence, and samples of what the model writes."""

from collections.abc import Callable
from functools import partial

from seektune.evaluate.config import EvaluateConfig
from seektune.evaluate.samples import Samples
from seektune.evaluate.task import Task
from seektune.parallel.model import ParallelModel
from seektune.run.context import RunContext
from seektune.run.data import TrainData
from seektune.run.decoding import run_decoding
from seektune.run.evals import run_task
from seektune.train.run_log import RunLog

Watch = Callable[[str], None]
"""Called with what the run does now."""


class TrainingEvaluations:
    """Runs what is due after a step and not in the log yet, as it is after a resume."""

    def __init__(self, run: RunContext, model: ParallelModel, data: TrainData):
        self._run = run
        self._model = model
        self._data = data

    def __call__(self, step: int, log: RunLog, watch: Watch) -> None:
        """Run the tasks and samples that are due after `step`.

        Raises:
            ArithmeticError: the model gives no number.
            Interrupted: a signal asked to stop.
            OSError: the results cannot be written.
        """
        for each in self._data.tasks.repeated:
            # before and after training are measured with the weights as loaded and as exported
            inside = 0 < step < self._run.recipe.steps
            if inside and _is_due(step, each.every) and not self._is_done(step, each.task.info.name, log):
                self._score(each.task, step, log, watch)
        for samples in self._data.tasks.samples:
            if self._wants(samples, step) and not self._is_done(step, samples.config.title, log):
                self._sample(samples, step, log, watch)

    def _wants(self, samples: Samples, step: int) -> bool:
        evaluate: EvaluateConfig = self._run.recipe.evaluate
        if step == 0:
            return evaluate.before
        if step == self._run.recipe.steps:
            return evaluate.after
        return _is_due(step, samples.config.every)

    def _is_done(self, step: int, title: str, log: RunLog) -> bool:
        """Whether the log of rank 0 has the result; the same on every process."""
        return self._run.mesh.ranks.first(lambda: (step, title) in log.evaluated())

    def _score(self, task: Task, step: int, log: RunLog, watch: Watch) -> None:
        phase = Phase(f"{task.info.title} after step {step}", watch)
        batch_tokens = self._run.recipe.evaluate.batch_tokens
        score = run_task(self._run, task, self._model, self._data, batch_tokens, phase.progress, phase.begin)
        values = {name: found.value for name, found in score.metrics.items()}
        log.evaluation(step, task.info.name, score.lines(), values)

    def _sample(self, samples: Samples, step: int, log: RunLog, watch: Watch) -> None:
        title = samples.config.title
        phase = Phase(f"{title} after step {step}", watch)

        def advance(done: int, total: int) -> None:
            phase.progress(done, total)
            self._run.stop_alone_if_signalled()

        tokenizer = self._data.tokenizer
        body = partial(samples.run, tokenizer=tokenizer, progress=advance)
        log.samples(step, title, run_decoding(self._run, self._model, body, phase.begin))


class Phase:
    """What the run does now, as the watchdog reports it; begins when it is made."""

    def __init__(self, doing: str, watch: Watch):
        self._doing = doing
        self._watch = watch
        self.begin()

    def begin(self) -> None:
        """Begin, or begin again."""
        self._watch(self._doing)

    def progress(self, done: int, total: int) -> None:
        """Report progress."""
        self._watch(f"{self._doing}: {done} of {total}")


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
