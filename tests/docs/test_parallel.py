"""Commands of docs/parallel.md: dry runs run, and what needs more machines makes the job that it says."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from seektune import cli
from seektune.launch.job import LaunchConfig
from seektune.planner.hardware import known_gpu
from seektune.planner.memory import first_ranks, peak_rank
from seektune.workflows import preflight
from tests.places import FLASH, ROOT
from tests.planner.jobs import layout
from tests.run_cli import seektune

PAGE = ROOT / "docs" / "parallel.md"


def commands(text: str) -> list[list[str]]:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line.replace("=R ", "=15 "), comments=True))]


def header(recipe: Path) -> list[list[str]]:
    """Commands in the comments that open a recipe."""
    said = recipe.read_text(encoding="utf-8").split("model:")[0].replace("\\\n#", "")
    return [shlex.split(line.replace("=R ", "=15 ")) for line in re.findall(r"^# +(automodel .*)", said, re.MULTILINE)]


EVERY = commands(PAGE.read_text(encoding="utf-8")) + header(FLASH)
STARTS = [command for command in EVERY if "--dry-run" not in command]
DRY = {" ".join(command).removeprefix("seektune train ").removeprefix("automodel ") for command in EVERY} - {
    " ".join(command).removeprefix("automodel ") for command in STARTS
}
"""What follows `seektune train` or `automodel`, which are the same."""


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(DRY))
def test_a_dry_run_of_the_page_runs(command: str) -> None:
    """It needs no network and no weights."""
    words = command.split()
    answer = seektune("train", *words)
    assert (answer.returncode, answer.stderr) == (0, "")
    if "--json" in words:
        assert [rank["rank"] for rank in json.loads(answer.stdout)["ranks"]] == [63]
    else:
        assert len(re.findall(r"^rank \d+ \(pp", answer.stdout, re.MULTILINE)) == 4
        assert "a step: 8 times 1 row of 512 tokens" in answer.stdout
        for layers in ("embedding, layers 0 to 10", "layers 11 to 21", "layers 22 to 32", "layers 33 to 42"):
            assert layers in answer.stdout
        # 8 of 256 experts in each of 11 layers (the MTP block is one), three bf16 matrices of 4096 x 2048
        assert answer.stdout.count(f"weights: {11 * 8 * 3 * 4096 * 2048 * 2 / 1e9:.2f} GB of routed experts") == 4
        # what the page and the recipe say
        assert "36.49 GB   8.76 GB         17.26 GB" in answer.stdout
        assert "| **4 × 32** | **128** | 11 | 36.5 | 26.1 | **62.5** |" in PAGE.read_text(encoding="utf-8")
        assert "Always:  36.5 GB. 2.28 B parameters" in FLASH.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", STARTS, ids=" ".join)
def test_a_start_of_the_page_makes_its_job(
    command: list[str], launched: list[LaunchConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: list[object] = []
    monkeypatch.setattr("seektune.cli.start.train_in_process", alone.append)
    monkeypatch.setattr(preflight, "cluster_here", lambda processes, nodes: known_gpu("h100-80gb", processes * nodes))
    door, *words = command
    assert door == "automodel"
    typer.main.get_command(cli.automodel_app)(words, standalone_mode=False)()
    if "--nproc-per-node=1" in words:
        assert (len(alone), launched) == (1, [])
    else:
        expected = (8, 16, 15) if "--nnodes=16" in words else (4, 1, 0)
        assert [(job.processes, job.nodes, job.node_rank) for job in launched] == [expected]


@pytest.mark.slow
def test_the_published_job_fits_80_gb_as_page_and_recipe_say() -> None:
    gb = 1e9
    for mode, said in (("block", "{:.1f} to {:.1f} GB"), ("none", "{:.1f} to {:.1f}")):
        most = peak_rank(first_ranks(layout(FLASH, 128, f"parallel.recompute={mode}")))
        bounds = said.format(most.lower["total"] / gb, most.upper["total"] / gb)
        assert (most.upper["total"] <= known_gpu("h100-80gb", 128).memory) == (mode == "block")
        assert all(bounds in file.read_text(encoding="utf-8").replace("\n#", "") for file in (PAGE, FLASH)), bounds
    assert layout(FLASH, 128).job.parallel.recompute == "block"


def test_there_are_commands_to_test() -> None:
    assert (len(DRY), len(STARTS)) == (2, 4)
