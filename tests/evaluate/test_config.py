import pytest
from pydantic import ValidationError

from seektune.data.datasets.hellaswag import HellaswagConfig
from seektune.evaluate.config import TASKS, EvaluateConfig


def test_tasks_run_unless_said_otherwise():
    config = EvaluateConfig()
    assert (config.before, config.after, config.limit, config.every, config.batch_tokens) == (
        True,
        True,
        500,
        None,
        8192,
    )
    assert EvaluateConfig(limit=None).limit is None


def test_a_dataset_is_measured_by_its_own_questions_unless_tasks_are_named():
    data = HellaswagConfig()
    assert EvaluateConfig().task_names([data]) == ["hellaswag"]
    assert EvaluateConfig(tasks=["validation", "hellaswag"]).task_names([data]) == ["validation", "hellaswag"]
    assert EvaluateConfig(tasks=[]).task_names([data]) == []


def test_a_dataset_without_questions_is_measured_by_its_held_out_examples():
    class Bare(HellaswagConfig):
        has_questions = False

    assert EvaluateConfig().task_names([Bare()]) == ["validation"]


@pytest.mark.parametrize("bad", [{"limit": 0}, {"every": 0}, {"batch_tokens": 0}, {"when": 1}])
def test_bad_values_are_refused(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        EvaluateConfig(**bad)


def test_unknown_and_repeated_tasks_are_refused():
    with pytest.raises(ValidationError, match=f"unknown task 'helaswag'; the tasks are {', '.join(TASKS)}"):
        EvaluateConfig(tasks=["helaswag"])
    with pytest.raises(ValidationError, match="names the task validation twice"):
        EvaluateConfig(tasks=["validation", "hellaswag", "validation"])
