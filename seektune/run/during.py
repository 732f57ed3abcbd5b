"""Evaluations during training: tasks at their own cadence, and samples of what the model writes."""

from collections.abc import Callable

from seektune.evaluate.config import EvaluateConfig
from seektune.evaluate.samples import Samples
from seektune.evaluate.task import Task
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.model import ParallelModel
from seektune.run.context import RunContext
from seektune.run.data import TrainData
from seektune.run.evals import subject_of
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
        advance = self._advance(f"{task.info.title} after step {step}", watch)
        subject = subject_of(task, self._model)
        score = task.run(subject, self._data.tokenizer, self._run.recipe.evaluate.batch_tokens, advance)
        values = {name: found.value for name, found in score.metrics.items()}
        log.evaluation(step, task.info.name, score.lines(), values)

    def _sample(self, samples: Samples, step: int, log: RunLog, watch: Watch) -> None:
        title = samples.config.title
        whole = DeepseekV4ForCausalLM.of(self._model.whole)
        answers = samples.run(whole, self._data.tokenizer, self._advance(f"{title} after step {step}", watch))
        log.samples(step, title, answers)

    def _advance(self, doing: str, watch: Watch) -> Callable[[int, int], None]:
        watch(doing)

        def advance(done: int, total: int) -> None:
            watch(f"{doing}: {done} of {total}")
            self._run.stop_if_signalled()

        return advance


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
