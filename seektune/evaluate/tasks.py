"""The tasks that a recipe can name in `evaluate.tasks`, made ready to measure a run's model."""

from collections.abc import Sequence

from seektune.data.datasets.dataset import DataCache, DataConfig
from seektune.data.datasets.registry import DATASETS
from seektune.evaluate.choice_task import ChoiceTask
from seektune.evaluate.config import VALIDATION
from seektune.evaluate.task import Task
from seektune.evaluate.validation_task import ValidationTask
from seektune.sequence import Batch


def make_task(
    name: str, data: DataConfig, validation: Sequence[Batch], cache: DataCache, limit: int | None = None
) -> Task:
    """A task by name.

    Args:
        name: one of `config.TASKS`.
        data: the run's dataset; questions of another one are those of its default rows.
        validation: batches of the run's held-out examples.
        cache: where questions are fetched to.
        limit: most questions.

    Raises:
        ValueError: a row is not as it should be.
        OSError: the questions are not here and no source answers.
    """
    if name == VALIDATION:
        return ValidationTask(validation, data.card())
    return ChoiceTask.of(questions_section(name, data), cache, limit)


def questions_section(name: str, data: DataConfig) -> DataConfig:
    """The dataset whose questions a task asks."""
    return data if data.dataset == name else DATASETS[name](dataset=name)
