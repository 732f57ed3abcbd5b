"""The section `evaluate` of a recipe."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt

from seektune.data.datasets.dataset import DataConfig
from seektune.data.datasets.registry import DATASETS
from seektune.section import Section

VALIDATION = "validation"
"""Name of the task on the dataset's held-out examples."""
DRAFTER = "drafter"
"""Name of the task on the model's drafter: the MTP block or the DSpark stages."""
TASKS = (*(name for name, section in DATASETS.items() if section.has_questions), VALIDATION, DRAFTER)
"""Names of tasks: datasets with questions, `validation` and `drafter`."""


def _known_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r:.80}; the tasks are {', '.join(TASKS)}")
    return name


def _named_once(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        if (names or []).count(name) > 1:
            raise ValueError(f"names the task {name} twice")
    return names


TaskName = Annotated[str, AfterValidator(_known_task), Field(json_schema_extra={"enum": list(TASKS)})]
TaskNames = Annotated[list[TaskName] | None, AfterValidator(_named_once)]


class EvaluateConfig(Section):
    """Tasks before and after training, and the validation loss during training."""

    tasks: TaskNames = None
    """Tasks that run before and after training; null = the dataset's own questions, or `validation` if it has none."""
    before: bool = True
    """Whether the tasks run before the first step."""
    after: bool = True
    """Whether the tasks run after the last step."""
    limit: PositiveInt | None = 500
    """Validation rows that are scored, spread evenly over the split; null = all."""
    every: PositiveInt | None = None
    """Steps between two measurements of the validation loss; null = only before and after training."""
    batch_tokens: PositiveInt = 8192
    """Maximum tokens, padding included, of one forward of a task with questions."""

    def task_names(self, datasets: Sequence[DataConfig]) -> list[str]:
        """The tasks of a run on some datasets."""
        if self.tasks is not None:
            return self.tasks
        return list(dict.fromkeys(data.kind if data.has_questions else VALIDATION for data in datasets))
