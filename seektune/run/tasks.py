"""The evaluation tasks of a run, and how often each runs during training."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from seektune.data.datasets.dataset import DataCache, DataConfig
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.answers_task import AnswersTask
from seektune.evaluate.config import ANSWERS, DRAFTER, HARNESS, NGRAM, SAMPLES, TASKS, VALIDATION, TaskConfig
from seektune.evaluate.harness_task import HarnessTask
from seektune.evaluate.ngram_task import NgramTask
from seektune.evaluate.prompts import PromptForm
from seektune.evaluate.samples import Samples
from seektune.evaluate.task import Task
from seektune.evaluate.tasks import make_task, questions_section
from seektune.evaluate.validation_task import ValidationTask
from seektune.model.config import DeepseekV4Config
from seektune.model.variants import encoding_of
from seektune.parallel.dims import ParallelDims
from seektune.recipe.recipe import Recipe
from seektune.run.decoding import decoding_obstacle
from seektune.run.drafter import drafter_is_measured
from seektune.run.named_key import naming
from seektune.sequence import Batch

DECODING = (SAMPLES, ANSWERS, HARNESS, DRAFTER)
"""Kinds of tasks that decode."""
HARNESS_LENGTH = 4096
"""Maximum tokens that the model reads at once in tasks of lm-evaluation-harness."""


@dataclass(frozen=True)
class TaskData:
    """What tasks are made of."""

    tokenizer: Tokenizer
    validation: Sequence[Batch]
    """Held-out batches of all datasets."""
    cache: DataCache
    validation_by_dataset: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    """The same by the name of each dataset in logs; empty if there is only one."""
    training: Callable[[], Iterable[Sequence[int]]] | None = None
    """Gives the token ids of each training example; None if they are streamed."""


@dataclass(frozen=True)
class RepeatedTask:
    """A task that also runs during training."""

    task: Task
    every: int | None
    """Steps between two runs; None = only before and after."""


@dataclass(frozen=True)
class RunTasks:
    """The tasks of a run."""

    repeated: Sequence[RepeatedTask] = ()
    samples: Sequence[Samples] = field(default=())

    @property
    def scored(self) -> list[Task]:
        """The tasks with scores."""
        return [each.task for each in self.repeated]


def make_tasks(recipe: Recipe, config: DeepseekV4Config, dims: ParallelDims, data: TaskData) -> RunTasks:
    """The tasks of the recipe; those that decode are left out, with a note, where the layout cannot.

    Raises:
        ValueError: a task's rows are invalid, or the model has no drafter to evaluate.
        OSError: data of a task is not here and cannot be fetched.
    """
    chosen = [*recipe.evaluate.task_list(recipe.datasets)]
    obstacles = {kind: decoding_obstacle(dims, recipe.parallel, drafts=kind == DRAFTER) for kind in DECODING}
    if drafter_is_measured(recipe, config, obstacles[DRAFTER]):
        chosen.append(TaskConfig(name=DRAFTER))
    for task in chosen:
        if (obstacle := obstacles.get(task.kind)) is not None:
            data.cache.note(f"note: the task {task.title} does not run: it decodes, and {obstacle}")
    scored = []
    samples = []
    for number, task in enumerate(chosen):
        if obstacles.get(task.kind) is not None:
            continue
        made = _with_rows(number, task, config, data.tokenizer)
        if isinstance(made, Samples):
            samples.append(made)
        else:
            scored.append(RepeatedTask(made or _make(task, recipe, config, data), task.every))
    return RunTasks(scored, samples)


def check_rows(recipe: Recipe, config: DeepseekV4Config, tokenizer: Tokenizer) -> int:
    """Check the rows of the user's own that tasks have; returns how many such tasks there are.

    Raises:
        ValueError: a row or file cannot be used.
        OSError: a file cannot be read.
    """
    tasks = recipe.evaluate.task_list(recipe.datasets)
    return sum(_with_rows(number, task, config, tokenizer) is not None for number, task in enumerate(tasks))


def question_sections(recipe: Recipe) -> Iterator[DataConfig]:
    """The datasets whose questions the recipe's tasks ask."""
    for task in recipe.evaluate.task_list(recipe.datasets):
        if task.name in TASKS and task.name not in (VALIDATION, DRAFTER):
            yield questions_section(task.name, recipe.datasets)


def _with_rows(
    number: int, task: TaskConfig, config: DeepseekV4Config, tokenizer: Tokenizer
) -> AnswersTask | Samples | None:
    """A task with rows of the user's own, by its place in the recipe; None for any other."""
    if task.name not in (ANSWERS, SAMPLES):
        return None
    with naming(f"evaluate.tasks.{number}"):
        form = _form(task, config)
        made = AnswersTask.of(task, form, tokenizer) if task.name == ANSWERS else Samples.of(task, form, tokenizer)
        longest = max(map(len, made.prompts)) + task.max_new_tokens
        config.check_length(longest, "the longest prompt and max_new_tokens")
    return made


def _make(task: TaskConfig, recipe: Recipe, config: DeepseekV4Config, data: TaskData) -> Task:
    if task.kind == HARNESS:
        return HarnessTask.of(task, min(HARNESS_LENGTH, config.max_position_embeddings))
    if task.name == NGRAM:
        return _ngram(recipe, config, data)
    limit = recipe.evaluate.limit
    parts = data.validation_by_dataset
    return make_task(task.name, recipe.datasets, data.validation, data.cache, config, limit, parts)


def _ngram(recipe: Recipe, config: DeepseekV4Config, data: TaskData) -> Task:
    if data.training is None:
        raise ValueError("evaluate.tasks ngram counts the training rows; it needs data.stream false")
    validation = ValidationTask.of(data.validation, recipe.datasets[0].card(), {})
    return NgramTask(validation, data.training, config.vocab_size)


def _form(task: TaskConfig, config: DeepseekV4Config) -> PromptForm:
    return PromptForm(encoding_of(config), task.thinking)
