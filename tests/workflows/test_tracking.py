"""Runs with trackers: what each client sent or wrote is read back, also after a resume, and holds no secret."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from seektune.io.secrets import HIDDEN
from seektune.recipe.load import dump_recipe
from seektune.train.trackers import make
from seektune.train.trackers.tracker import TrackedRun, TrackedValues
from tests.launch.ports import held_port
from tests.patience import HUNG
from tests.read_run import losses
from tests.run_cli import seektune
from tests.workflows.conftest import Make
from tests.workflows.test_train import train

CANARY = "hf_0123456789abcdefCANARY"


def read_wandb(file: Path) -> list[Any]:
    """The records of a .wandb file: a log of protobuf records in blocks, as LevelDB writes it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = file.read_bytes()
    place = 7
    parts = b""
    records = []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size = int.from_bytes(data[place + 4 : place + 6], "little")
        kind = data[place + 6]
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    return records


def wandb_history(records: list[Any]) -> list[dict[str, Any]]:
    lines = [record.history for record in records if record.HasField("history")]
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in line.item} for line in lines
    ]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an MLflow server."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    for name, value in quiet.items():
        monkeypatch.setenv(name, value)
    with held_port() as port:
        store = f"sqlite:///{tmp_path}/server.db"
        words = ["server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        log = (tmp_path / "server.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
        )
        url = f"http://127.0.0.1:{port}"
        try:
            while not answers(url):
                assert process.poll() is None, (tmp_path / "server.log").read_text()
            yield url
        finally:
            os.killpg(process.pid, 15)
            process.wait(HUNG)


def answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=HUNG) as answer:
            return bool(answer.status == 200)
    except URLError:
        return False


@pytest.mark.slow
def test_each_tracker_gets_one_run_from_a_run_that_resumed(
    recipe: Make, tmp_path: Path, server: str, rows: Path
) -> None:
    for name in ("wandb", "mlflow", "trackio"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    (tmp_path / CANARY).symlink_to(rows)
    wanted = recipe(
        data__path=str(tmp_path / CANARY), logging={"to": ["wandb", "mlflow", "trackio"], "project": "toys"}
    )
    file = tmp_path / "toy.yaml"
    file.write_text(dump_recipe(wanted), encoding="utf-8")
    folder = tmp_path / "run"
    settings = {
        **{"MLFLOW_TRACKING_URI": server, "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")},
        **{"HF_TOKEN": CANARY, "HF_HUB_OFFLINE": "1"},
    }
    ids = []
    for steps in (3, 5):
        done = seektune("train", file, f"--steps={steps}", cwd=tmp_path, **settings)
        assert done.returncode == 0, done.stderr
        assert "metrics.jsonl has all" not in done.stdout
        ids.append(json.loads((folder / "tracking.json").read_text())["id"])
    assert ids[0] == ids[1]
    trained = losses(folder)

    from mlflow import MlflowClient

    client = MlflowClient(server)
    (run,) = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(each.step, each.value) for each in history] == trained
    assert {each.step for each in client.get_metric_history(run.info.run_id, "validation/loss")} == {0, 2, 3, 4, 5}
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["optimizer.lr"] == "0.005"
    assert run.data.params["data.path"] == HIDDEN
    assert run.data.metrics["system/process_memory_gb"] > 0.01

    parts = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {part.stem for part in parts} == {f"run-{ids[0]}"}
    records = [record for part in parts for record in read_wandb(part)]
    lines = [line for line in wandb_history(records) if "train/loss" in line]
    assert [(line["step"], line["train/loss"]) for line in lines] == trained
    assert "system/cpu_percent" in lines[0]
    (project,) = {record.run.project for record in records if record.HasField("run")}
    assert project == "toys"

    with sqlite3.connect(tmp_path / "trackio" / "toys.db") as base:
        found = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    values = [(name, step, json.loads(line)) for name, step, line in found]
    assert {name for name, _, _ in values} == {f"run-{ids[0]}"}
    assert [(step, line["train/loss"]) for _, step, line in values if "train/loss" in line] == trained

    sent = [file for place in ("trackio", "run/wandb", "server.db") for file in within(tmp_path / place)]
    assert len(sent) > 5
    assert [file for file in sent if CANARY.encode() in file.read_bytes()] == []
    assert CANARY in (folder / "recipe.yaml").read_text()


def within(place: Path) -> list[Path]:
    return [file for file in (place, *place.rglob("*")) if file.is_file()]


@pytest.mark.slow
def test_mlflow_writes_into_the_run_folder_where_there_is_no_server(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    run = TrackedRun("ab12", "mine", "toys", tmp_path, {"lr": 1e-3}, offline=True)
    for step in (1, 2):
        tracker = make.make_tracker("mlflow", run)
        tracker.open()
        tracker.log([TrackedValues(step, {"loss": step / 2, "bad": float("nan")})])
        tracker.close(finished=step == 2)
    with sqlite3.connect(tmp_path / "mlflow.db") as base:
        found = base.execute("select step, value from metrics where key = 'loss' order by step").fetchall()
        runs = base.execute("select name, status from runs").fetchall()
    assert found == [(1, 0.5), (2, 1.0)]
    assert runs == [("mine", "FINISHED")]


@pytest.mark.slow
def test_servers_that_are_down_stop_nothing(recipe: Make, tmp_path: Path) -> None:
    for name in ("wandb", "mlflow"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    file = tmp_path / "toy.yaml"
    file.write_text(dump_recipe(recipe(logging={"to": ["wandb", "mlflow"], "flush_timeout": 0.2})), encoding="utf-8")
    with held_port() as port:
        down = f"http://127.0.0.1:{port}"
        settings = {"WANDB_BASE_URL": down, "WANDB_API_KEY": "0" * 40, "MLFLOW_TRACKING_URI": down}
        done = seektune("train", file, cwd=tmp_path, HF_HUB_OFFLINE="1", **settings)
    assert done.returncode == 0, done.stderr
    for name in ("wandb", "mlflow"):
        assert len(re.findall(rf"^{name}: (\d+) of \1 records were not sent", done.stdout, re.MULTILINE)) == 1
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2, 3]


def test_a_client_that_is_missing_is_named_with_its_extra(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"logging.to: mlflow is not installed: pip install 'seektune\[mlflow\]'"):
        train(recipe(logging={"to": ["tensorboard", "mlflow"]}))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_wandb_without_a_key_is_found_before_training(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"wandb has no API key; run `wandb login`, set WANDB_API_KEY, or"):
        train(recipe(logging={"to": ["wandb"]}))
