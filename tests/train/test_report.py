import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from seektune.data.held_out_loss import HeldOutLoss
from seektune.train.config import LoggingConfig
from seektune.train.metrics import MetricsLog
from seektune.train.report import write_report
from seektune.train.report_text import EvalText, ReportText
from seektune.train.score_plot import BeforeAfter, Score
from tests.train.tiny_run import RECORD

from .reader import read

NASTY = "<script>alert('&')</script>"
SCORES = [
    BeforeAfter(
        "acc", Score(0.25, 0.21, 0.29, "25.0% (21.0% to 29.0%)"), Score(0.3, 0.26, 0.34, "30.0%"), "accuracy", True
    ),
    BeforeAfter("norm", None, Score(0.4, 0.3, 0.5, "40.0%"), "accuracy", True),
]


def record_run(folder, steps):
    with MetricsLog(folder, steps, LoggingConfig(to=())) as log:
        log.validation(0, HeldOutLoss(4.0))
        for step in range(1, steps + 1):
            log.step(replace(RECORD, step=step, loss=4 - 2 * step / steps))
        log.validation(steps, HeldOutLoss(2.125))


EVALS = (EvalText("quiz", f"questions {NASTY}", SCORES),)


def story(evals=EVALS):
    return ReportText(NASTY, [("data", NASTY)], f"seed: 0 # {NASTY}", evals)


@pytest.mark.parametrize("steps", [1, 3, 80])
@pytest.mark.slow
def test_the_report_tells_the_run_and_needs_nothing_beside_it(tmp_path, steps):
    record_run(tmp_path, steps)
    path = write_report(tmp_path, story())
    text = path.read_text(encoding="utf-8")
    reader = read(text)
    words = " ".join(reader.words)
    for expected in (
        "4.000 → 2.125",
        "25.0% → 30.0%",
        "25.0% (21.0% to 29.0%)",
        "not taken",
        "Quiz",
        "quiz acc, before → after",
        "metrics.jsonl",
        "recipe",
    ):
        assert expected in words
    links = [value for name, value in reader.attributes if name in ("src", "href", "srcset")]
    assert len(links) == 6
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "prefers-color-scheme: dark" in text
    assert ("name", "viewport") in reader.attributes
    assert Image.open(tmp_path / "loss.png").size[0] > 800


@pytest.mark.slow
def test_words_of_users_stay_words(tmp_path):
    record_run(tmp_path, 2)
    reader = read(write_report(tmp_path, story()).read_text(encoding="utf-8"))
    assert "script" not in reader.tags
    assert " ".join(reader.words).count(NASTY) >= 4


@pytest.mark.slow
def test_without_evaluations_there_are_no_scores(tmp_path):
    record_run(tmp_path, 2)
    text = write_report(tmp_path, story([])).read_text(encoding="utf-8")
    assert "95 % interval" not in text
    assert text.count("<img ") == 2


@pytest.mark.slow
def test_only_files_that_are_there_are_listed(tmp_path):
    record_run(tmp_path, 1)
    (tmp_path / "model").mkdir()
    words = read(write_report(tmp_path, story()).read_text(encoding="utf-8")).words
    assert "model" in words
    assert "checkpoints" not in words


@pytest.mark.slow
def test_a_run_on_rewards_is_judged_by_its_held_out_reward(tmp_path):
    record_run(tmp_path, 2)
    lines = [{"step": 0, "loss": -0.25, "reward": 0.25}, {"step": 2, "loss": -0.5, "reward": 0.5}]
    for line in lines:
        line |= {"reward_low": line["reward"] - 0.1, "reward_high": line["reward"] + 0.1}
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rewarded = "".join(json.dumps(step | {"reward": 0.3, "mismatch_max": 0.0}) + "\n" for step in steps)
    (tmp_path / "metrics.jsonl").write_text(rewarded)
    words = " ".join(read(write_report(tmp_path, story()).read_text(encoding="utf-8")).words)
    assert "0.250 → 0.500 held-out reward, before → after" in words
    assert "validation loss" not in words
