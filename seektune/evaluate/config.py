"""The section `evaluate` of a recipe, and its tasks."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from seektune.data.datasets.dataset import DataConfig
from seektune.data.datasets.registry import DATASETS
from seektune.rewards.config import VerifierName
from seektune.section import PathString, Section

VALIDATION = "validation"
"""Name of the task on the dataset's held-out examples."""
DRAFTER = "drafter"
"""Name of the task on the model's drafter: the MTP block or the DSpark stages."""
SAMPLES = "samples"
"""Name of the task that writes answers to fixed prompts."""
ANSWERS = "answers"
"""Name of the task that scores answers to the user's own rows."""
NGRAM = "ngram"
"""Name of the task that compares the held-out loss with that of a 5-gram model."""
HARNESS = "lm_eval:"
"""What the names of lm-evaluation-harness's tasks begin with."""
TASKS = (*(name for name, section in DATASETS.items() if section.has_questions), VALIDATION, DRAFTER)
"""Names of tasks that need no settings: datasets with questions, `validation` and `drafter`."""
OF_RECIPES = (*TASKS, NGRAM, SAMPLES, ANSWERS)
"""Names of the tasks of recipes, without those of lm-evaluation-harness."""
OWN_KEYS = {
    SAMPLES: ("prompts", "path", "thinking", "max_new_tokens"),
    ANSWERS: ("path", "metric", "thinking", "max_new_tokens", "limit"),
    HARNESS: ("limit", "num_fewshot", "apply_chat_template"),
}
"""Keys of a task besides those that all have."""


def _known_task(name: str) -> str:
    if name not in OF_RECIPES and not (name.startswith(HARNESS) and name != HARNESS):
        known = ", ".join(OF_RECIPES)
        raise ValueError(f"unknown task {name!r:.80}; the tasks are {known} and {HARNESS}NAME of lm-evaluation-harness")
    return name


TaskName = Annotated[str, AfterValidator(_known_task)]


class TaskConfig(Section):
    """A task with settings; a task without is just its name."""

    name: TaskName
    """`hellaswag`, `validation`, `drafter`, `ngram`, `samples`, `answers`, or `lm_eval:NAME`, of
    lm-evaluation-harness."""
    label: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    """Name in files and reports; null = `name`."""
    every: PositiveInt | None = None
    """Steps between two runs of the task during training; null = only before and after."""
    prompts: Annotated[list[str | dict[str, Any]], Field(min_length=1)] | None = None
    """`samples`: texts to continue, or rows as in a file of `path`."""
    path: PathString | None = None
    """`samples` and `answers`: .jsonl file of rows with `prompt` or `messages`; for `answers` with `answer`, or a
    conversation that ends with a response."""
    metric: VerifierName = "exact_match"
    """`answers`: how a generated answer is compared with that of the row."""
    thinking: bool = False
    """`samples` and `answers`: whether answers to conversations begin with reasoning."""
    max_new_tokens: PositiveInt = 256
    """`samples` and `answers`: maximum tokens of an answer."""
    limit: PositiveInt | None = None
    """`answers` and `lm_eval:NAME`: number of rows, the first ones; null = all."""
    num_fewshot: NonNegativeInt | None = None
    """`lm_eval:NAME`: solved examples before each question; null = as the task says."""
    apply_chat_template: bool = False
    """`lm_eval:NAME`: whether prompts are conversations in the model's chat format."""

    @property
    def title(self) -> str:
        """The name in files and reports."""
        return self.label or self.name

    @property
    def kind(self) -> str:
        """The name without that of the harness's task."""
        return HARNESS if self.name.startswith(HARNESS) else self.name

    @model_validator(mode="after")
    def _has_its_own_keys(self) -> Self:
        fields = type(self).model_fields
        general = ("name", "label", "every")
        for key in (key for key in fields if key not in general and key not in OWN_KEYS.get(self.kind, ())):
            if vars(self)[key] != fields[key].default:
                raise ValueError(f"{key} is not a setting of the task {self.name}")
        if self.name == SAMPLES and (self.prompts is None) == (self.path is None):
            raise ValueError("the task samples needs either prompts or path")
        if self.name == ANSWERS and self.path is None:
            raise ValueError("the task answers needs path: a .jsonl file of rows with prompt or messages, and answer")
        return self


def _as_section(value: object) -> object:
    """Expand a name to the section that it stands for."""
    return {"name": _known_task(value)} if isinstance(value, str) else value


def _named_once(tasks: list[TaskConfig] | None) -> list[TaskConfig] | None:
    titles = [task.title for task in tasks or ()]
    for title in titles:
        if titles.count(title) > 1:
            raise ValueError(f"names the task {title} twice; give one a label")
    return tasks


PlainName = Annotated[str, Field(json_schema_extra={"enum": [*TASKS, NGRAM]})]
HarnessName = Annotated[str, Field(pattern=f"^{HARNESS}.")]
TaskNameOrSection = PlainName | HarnessName | TaskConfig
TaskItem = Annotated[TaskConfig, BeforeValidator(_as_section, json_schema_input_type=TaskNameOrSection)]
TaskList = Annotated[list[TaskItem] | None, AfterValidator(_named_once)]


class EvaluateConfig(Section):
    """Tasks before, during and after training, and the validation loss during training."""

    tasks: TaskList = None
    """Names or sections of tasks; null = the dataset's own questions, or `validation` if it has none."""
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

    def task_list(self, datasets: Sequence[DataConfig]) -> Sequence[TaskConfig]:
        """The tasks of a run on some datasets."""
        if self.tasks is not None:
            return self.tasks
        names = dict.fromkeys(data.kind if data.has_questions else VALIDATION for data in datasets)
        return [TaskConfig(name=name) for name in names]

    def named(self, name: str) -> bool:
        """Whether the recipe names a task."""
        return any(task.name == name for task in self.tasks or ())
