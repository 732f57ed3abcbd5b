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


def record_distillation(folder):
    """Two steps of answers with two teachers; the second step has none of the teacher `low`."""
    with MetricsLog(folder, 2, LoggingConfig(to=())) as log:
        for step, wide, low, reward in ((0, 0.5, 0.7, 0.0), (1, 0.25, 0.35, 0.0), (2, 0.125, 0.175, 0.25)):
            parts = {"divergence": (wide + low) / 2, "entropy": 1.5 - step / 4}
            teachers = {"divergence_wide": wide, "divergence_low": low}
            if step:
                shown = parts | (teachers if step == 1 else {"divergence_wide": wide})
                log.step(replace(RECORD, step=step, parts=shown | {"reward": reward, "mismatch_max": 0.0}))
            rewards = {"reward": reward, "reward_low": 0.0, "reward_high": 1.0}
            of_datasets = {"sums": wide, "products": low}
            log.validation(step, HeldOutLoss(parts["divergence"], of_datasets, parts | teachers | rewards))


@pytest.mark.slow
def test_a_run_on_teachers_is_judged_by_its_divergence_from_them(tmp_path):
    record_distillation(tmp_path)
    words = " ".join(read(write_report(tmp_path, story()).read_text(encoding="utf-8")).words)
    cards = ("0.600 → 0.150 held-out divergence", "1.500 → 1.000 held-out entropy", "0.000 → 0.250 held-out reward")
    found = [words.index(card) for card in cards]
    assert found == sorted(found)
    assert "after step divergence from wide from low entropy" in words
    assert "0 0.6000 0.5000 0.7000 1.5000 1 0.3000" in words
    assert words.index("Divergence from teachers") < words.index("Rewards")
    assert "held-out divergence per token on products 0.7000 0.1750" in words
    assert "validation loss" not in words


def test_the_console_has_the_divergence_from_each_teacher(tmp_path, capsys):
    record_distillation(tmp_path)
    shown = capsys.readouterr().out
    assert "loss 1.5000 · divergence wide 0.25 · divergence low 0.35 · entropy 1.25 · reward 0" in shown
    assert "divergence_wide 0.1250, divergence_low 0.1750, entropy 1.0000, reward 0.2500 after step 2" in shown
