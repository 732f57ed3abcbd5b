"""Tasks by name: those of datasets with questions, and `validation`."""

from pathlib import Path

import pytest

from seektune.data.datasets.dataset import DataCache
from seektune.data.datasets.hellaswag import HellaswagConfig
from seektune.data.datasets.synthetic import write_hellaswag
from seektune.data.example import continuation
from seektune.data.packing import collate
from seektune.evaluate.config import TASKS
from seektune.evaluate.tasks import make_task
from seektune.model.config import DeepseekV4Config

CONFIG = DeepseekV4Config.preset("tiny")
BATCH = collate([[continuation([5, 6], [7], "x")]], 2)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_that_a_recipe_may_name_is_made(name: str, tmp_path: Path) -> None:
    data = HellaswagConfig(path=str(write_hellaswag(tmp_path, 3, 5)))
    info = make_task(name, [data], [BATCH], DataCache(tmp_path, print), CONFIG, limit=4).info
    assert info.name == name
    assert info.data == data.card()
    assert any(metric.headline for metric in info.metrics.values())


def test_questions_are_those_of_the_runs_own_rows(tmp_path: Path) -> None:
    data = HellaswagConfig(path=str(write_hellaswag(tmp_path, 3, 5)))
    task = make_task("hellaswag", [data], [], DataCache(tmp_path, print), CONFIG, limit=4)
    assert task.questions == data.questions(DataCache(tmp_path, print), limit=4)
