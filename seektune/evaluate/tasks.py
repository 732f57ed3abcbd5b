"""The tasks that a recipe can name in `evaluate.tasks`."""

from collections.abc import Mapping, Sequence

from seektune.data.datasets.dataset import DataCache, DataConfig
from seektune.data.datasets.registry import DATASETS
from seektune.evaluate.choice_task import ChoiceTask
from seektune.evaluate.config import DRAFTER, VALIDATION
from seektune.evaluate.drafter_task import drafter_task, prompts_of
from seektune.evaluate.task import Task
from seektune.evaluate.validation_task import ValidationTask
from seektune.model.config import DeepseekV4Config
from seektune.sequence import Batch


def make_task(
    name: str,
    datasets: Sequence[DataConfig],
    validation: Sequence[Batch],
    cache: DataCache,
    model: DeepseekV4Config,
    limit: int | None = None,
    by_dataset: Mapping[str, Sequence[Batch]] | None = None,
) -> Task:
    """A task by name.

    Args:
        name: one of `config.TASKS`.
        datasets: of the run; questions of another kind are those of its default rows.
        validation: batches of the run's held-out examples.
        cache: keeps downloaded questions.
        model: of the models that will be evaluated.
        limit: maximum number of questions.
        by_dataset: parts of `validation`, in order, by the name of their dataset; empty if there is only one.

    Raises:
        ValueError: a row is invalid, or the model has no drafter to evaluate.
        OSError: the questions are not cached and cannot be downloaded.
    """
    if name == VALIDATION:
        return ValidationTask.of(validation, datasets[0].card(), by_dataset or {})
    if name == DRAFTER:
        return drafter_task(model, prompts_of(validation), datasets[0].card())
    return ChoiceTask.of(questions_section(name, datasets), cache, limit)


def questions_section(name: str, datasets: Sequence[DataConfig]) -> DataConfig:
    """The dataset of a task's questions."""
    return next((data for data in datasets if data.kind == name), None) or DATASETS[name](kind=name)
