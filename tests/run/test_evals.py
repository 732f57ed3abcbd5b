"""evaluation.json: what tasks found before and after training, also that of runs from before there were tasks."""

import json
from pathlib import Path

from seektune.data.question import Question
from seektune.evaluate.choice_task import ChoiceTask
from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import TaskScore
from seektune.run.evals import compare, read_evals, write_evals

TASK = ChoiceTask("hellaswag", "HellaSwag", [Question("a", ("b", "c", "d", "e"), 0, "x")] * 4)
OF_BEFORE = {
    "acc": {"value": 0.25, "low": 0.0, "high": 0.75},
    "acc_norm": {"value": 0.5, "low": 0.0, "high": 1.0},
    **{"n": 4, "loss": 5.5, "loss_tokens": 40, "right": "0100", "right_norm": "0101"},
}


def test_the_file_of_an_earlier_run_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    text = json.dumps({"hellaswag": {"before": OF_BEFORE, "after": None}}, indent=2) + "\n"
    (tmp_path / "evaluation.json").write_text(text)
    scores = read_evals(tmp_path, "before", [TASK])
    assert scores["hellaswag"].metrics["acc"] == Estimate(0.25, 0.0, 0.75)
    assert (scores["hellaswag"].n, scores["hellaswag"].outcomes["right_norm"]) == (4, "0101")
    write_evals(tmp_path, scores, {})
    assert (tmp_path / "evaluation.json").read_text() == text


def test_what_is_not_there_is_no_score(tmp_path: Path) -> None:
    assert read_evals(tmp_path, "before", [TASK]) == {}
    write_evals(tmp_path, {"hellaswag": TaskScore.from_dict(TASK.info, OF_BEFORE)}, {})
    assert read_evals(tmp_path, "after", [TASK]) == {}
    other = ChoiceTask("other", "Other", TASK.questions)
    assert read_evals(tmp_path, "before", [other]) == {}


def test_scores_are_compared_task_by_task() -> None:
    before = TaskScore.from_dict(TASK.info, OF_BEFORE)
    after = TaskScore.from_dict(TASK.info, OF_BEFORE | {"right": "1111", "n": 4})
    (both,) = compare({"hellaswag": before}, {"hellaswag": after})
    assert (both.before, both.after, both.n) == (before, after, 4)
    assert both.changes()["acc"].difference == 0.75
    (alone,) = compare({}, {"hellaswag": after})
    assert (alone.before, alone.n, alone.changes()) == (None, 4, {})
    assert compare({}, {}) == []
