import pytest
from pydantic import ValidationError

from seektune.data.datasets.hellaswag import HellaswagConfig
from seektune.evaluate.config import TASKS, EvaluateConfig, TaskConfig


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
    assert names(EvaluateConfig(), data) == ["hellaswag"]
    assert names(EvaluateConfig(tasks=["validation", "hellaswag"]), data) == ["validation", "hellaswag"]
    assert names(EvaluateConfig(tasks=[]), data) == []


def test_a_dataset_without_questions_is_measured_by_its_held_out_examples():
    class Bare(HellaswagConfig):
        has_questions = False

    assert names(EvaluateConfig(), Bare()) == ["validation"]


def names(config, data):
    return [task.name for task in config.task_list([data])]


def test_a_task_is_a_name_or_a_section():
    config = EvaluateConfig(tasks=["hellaswag", {"name": "validation", "every": 50}, "lm_eval:arc_easy"])
    assert config.tasks == [
        TaskConfig(name="hellaswag"),
        TaskConfig(name="validation", every=50),
        TaskConfig(name="lm_eval:arc_easy"),
    ]
    assert EvaluateConfig.model_validate_json(config.model_dump_json(), strict=True) == config


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": "samples"}, "the task samples needs either prompts or path"),
        ({"name": "samples", "prompts": ["a"], "path": "b"}, "the task samples needs either prompts or path"),
        ({"name": "answers"}, "the task answers needs path"),
        ({"name": "validation", "metric": "regex"}, "metric is not a setting of the task validation"),
        ({"name": "lm_eval:arc_easy", "path": "x"}, "path is not a setting of the task lm_eval:arc_easy"),
        ({"name": "lm_eval:"}, "unknown task 'lm_eval:'"),
        ("samples", "the task samples needs either prompts or path"),
        ({"name": "validation", "evry": 5}, "evry"),
    ],
)
def test_settings_of_other_tasks_are_refused(bad, message):
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig(tasks=[bad])


def test_a_task_can_run_twice_with_labels():
    rows = {"name": "answers", "path": "rows.jsonl"}
    config = EvaluateConfig(tasks=[rows, {**rows, "label": "strict"}])
    assert [task.title for task in config.tasks] == ["answers", "strict"]
    with pytest.raises(ValidationError, match="names the task answers twice; give one a label"):
        EvaluateConfig(tasks=[rows, rows])


@pytest.mark.parametrize("bad", [{"limit": 0}, {"every": 0}, {"batch_tokens": 0}, {"when": 1}])
def test_bad_values_are_refused(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        EvaluateConfig(**bad)


def test_unknown_and_repeated_tasks_are_refused():
    with pytest.raises(ValidationError, match=f"unknown task 'helaswag'; the tasks are {', '.join(TASKS)}"):
        EvaluateConfig(tasks=["helaswag"])
    with pytest.raises(ValidationError, match="names the task validation twice"):
        EvaluateConfig(tasks=["validation", "hellaswag", "validation"])
