from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seektune.data.held_out_loss import HeldOutLoss
from seektune.io.jsonl import read_records
from seektune.train.config import LoggingConfig
from seektune.train.metrics import LOAD_LINES, MetricsLog
from seektune.train.router_health import imbalance
from tests.train.tiny_run import RECORD


def run(folder, steps, tensorboard=False):
    with MetricsLog(folder, steps, LoggingConfig(to=("tensorboard",) if tensorboard else ())) as log:
        log.validation(0, HeldOutLoss(4.0))
        for step in range(1, steps + 1):
            log.step(replace(RECORD, step=step))


def test_a_line_per_step(tmp_path):
    run(tmp_path, 3)
    lines = read_records(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"loss", "grad_norm", "lr", "tokens", "tokens_per_s"} <= lines[0].keys()
    assert [(line["tokens"], line["total_tokens"]) for line in lines] == [(40, 40), (40, 80), (40, 120)]
    assert lines[0]["expert_imbalance"] == {"0": 1.5, "1": 1.0}
    assert read_records(tmp_path / "validation.jsonl") == [{"step": 0, "loss": 4.0}]
    assert not (tmp_path / "tensorboard").exists()


def test_further_parts_of_the_objective_have_their_names(tmp_path):
    with MetricsLog(tmp_path, 1, LoggingConfig(to=("tensorboard",))) as log:
        log.step(replace(RECORD, parts={"margin": 0.25}))
    (line,) = read_records(tmp_path / "metrics.jsonl")
    assert line["margin"] == 0.25
    assert "parts" not in line
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/margin")] == [0.25]


def test_the_validation_loss_of_each_dataset_is_written(tmp_path, capsys):
    with MetricsLog(tmp_path, 1, LoggingConfig(to=())) as log:
        log.validation(0, HeldOutLoss(4.0, {"chat": 3.5, "text": 4.25}))
    (line,) = read_records(tmp_path / "validation.jsonl")
    assert line == {"step": 0, "loss": 4.0, "datasets": {"chat": 3.5, "text": 4.25}}
    assert "validation loss 4.0000 after step 0 (chat 3.5000, text 4.2500)" in capsys.readouterr().out


def test_expert_loads_are_summed_into_few_lines(tmp_path):
    steps = 2 * LOAD_LINES + 1
    run(tmp_path, steps)
    moments = read_records(tmp_path / "expert_loads.jsonl")
    assert len(moments) <= LOAD_LINES
    assert moments[-1]["step"] == steps
    assert moments[0] == {"step": 3, "loads": {"0": [30, 90], "1": [60, 60]}}
    assert sum(sum(moment["loads"]["0"]) for moment in moments) == 40 * steps


def test_tensorboard_gets_the_curves(tmp_path):
    run(tmp_path, 3, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.5), (2, 1.5), (3, 1.5)]
    assert [event.value for event in events.Scalars("expert_imbalance/layer_0")] == [1.5] * 3
    assert [event.value for event in events.Scalars("validation/loss")] == [4.0]


def test_files_are_closed_when_the_user_interrupts(tmp_path):
    opened = []

    def interrupted():
        with MetricsLog(tmp_path, 3, LoggingConfig()) as log:
            opened.append(log)
            log.step(RECORD)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(read_records(tmp_path / "metrics.jsonl")) == 1
    with pytest.raises(ValueError, match="closed"):
        opened[0].step(replace(RECORD, step=2))


def test_a_resumed_run_goes_on_with_the_files(tmp_path):
    with MetricsLog(tmp_path, 60, LoggingConfig(to=("tensorboard",))) as log:
        log.validation(0, HeldOutLoss(4.0))
        for step in range(1, 6):
            log.step(replace(RECORD, step=step))
            if step == 3:
                state = log.state_dict()
    with MetricsLog(tmp_path, 60, LoggingConfig(to=("tensorboard",)), 3, state) as log:
        assert log.validations() == {0: 4.0}
        log.step(replace(RECORD, step=4))
    lines = read_records(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["total_tokens"]) for line in lines] == [(1, 40), (2, 80), (3, 120), (4, 160)]
    # windows of two steps: the half-filled one of step 3 is completed by step 4
    assert [line["loads"]["0"] for line in read_records(tmp_path / "expert_loads.jsonl")] == [[20, 60], [20, 60]]


def test_a_run_that_starts_anew_forgets_the_files(tmp_path):
    run(tmp_path, 2)
    with MetricsLog(tmp_path, 2, LoggingConfig(to=())) as log:
        assert log.validations() == {}
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_a_save_that_failed_has_a_line(tmp_path, capsys):
    with MetricsLog(tmp_path, 2, LoggingConfig(to=())) as log:
        log.not_saved(1, "could not write step-000001: No space left on device")
    line = {"step": 1, "not_saved": "could not write step-000001: No space left on device"}
    assert read_records(tmp_path / "metrics.jsonl") == [line]
    assert capsys.readouterr().out == f"not saved: {line['not_saved']}\n"


def test_a_skipped_step_has_a_line(tmp_path):
    with MetricsLog(tmp_path, 2, LoggingConfig(to=())) as log:
        log.skipped(1, "the loss is not finite")
    assert read_records(tmp_path / "metrics.jsonl") == [{"step": 1, "skipped": "the loss is not finite"}]


def test_imbalance_is_largest_over_mean():
    assert imbalance({0: [4, 0, 0, 0], 1: [2, 2, 2, 2], 2: [0, 0, 0, 0]}) == {0: 4.0, 1: 1.0, 2: 0.0}
