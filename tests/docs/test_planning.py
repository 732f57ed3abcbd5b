"""Every command of docs/planning.md runs, and its cluster file is one."""

import json
import re
import shlex
from pathlib import Path

import pytest

from seektune.data.datasets.synthetic import write_hellaswag
from seektune.planner.hardware import hardware_data, read_cluster
from tests.places import ROOT
from tests.run_cli import seektune

PAGE = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command: str, tmp_path: Path) -> None:
    door, *words = shlex.split(command.replace("/tmp", str(tmp_path)))
    assert door == "seektune"
    if words[0] == "validate":
        words.append(f"--data.path={write_hellaswag(tmp_path / 'rows', 40, 6)}")
    answer = seektune(*words)
    assert answer.returncode in ((0, 1) if words[0] == "plan" else (0,)), answer.stderr
    assert answer.stderr == ""
    if "--json" in words:
        values = json.loads(answer.stdout)
        assert values["fits"] if "--serve" in words else values["layout"]["plan"]["ep_size"] == 16
    elif "--serve" in words:
        assert "sequences that fit" in answer.stdout
    elif words[0] == "plan":
        assert "rank" in answer.stdout
        assert "never with a GPU" in answer.stdout
    if "--html" in words:
        assert (tmp_path / "plan.html").stat().st_size > 10_000


def test_the_cluster_file_is_one(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
    cluster = read_cluster(file)
    assert (cluster.gpus, cluster.nodes, cluster.network) == (64, 8, 25e9)


def test_the_page_names_every_known_gpu_and_what_was_measured() -> None:
    assert all(f"`{name}`" in PAGE for name in hardware_data()["gpus"])
    found = json.loads((ROOT / "bench" / "plan.json").read_text(encoding="utf-8"))
    ratios = [each["ratio"] for each in found["alone"]]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} times the measurement" in PAGE
    four = [each["ratio"] for each in found["four"]]
    assert f"context and data axes: {min(four):.2f} to {max(four):.2f} times" in PAGE


def test_there_are_commands_to_test() -> None:
    assert len(COMMANDS) == 9
