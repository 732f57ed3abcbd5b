"""The commands of docs/lora.md and of the tiny LoRA recipe run, on made rows and with few steps."""

import shlex
from pathlib import Path

import pytest
import torch
import typer

from seektune import cli
from seektune.data.datasets.synthetic import write_hellaswag
from seektune.launch.job import LaunchConfig
from seektune.lora.delta import LoraDelta
from seektune.lora.format import write_adapter
from tests.places import RECIPES, ROOT, TINY_LORA
from tests.run_cli import seektune

from .test_parallel import commands, header

PAGE = ROOT / "docs" / "lora.md"


EVERY = commands(PAGE.read_text(encoding="utf-8"))
FLASH = [words for recipe in sorted(RECIPES.glob("*flash*_lora*.yaml")) for words in header(recipe)]
NODE = [words for words in (*EVERY, *FLASH) if "--nproc-per-node=8" in words]
"""The jobs that need GPUs."""


def commands_of_page() -> list[list[str]]:
    return [words for words in EVERY if words not in NODE and "--dry-run" not in words]


def commands_of_recipe() -> list[list[str]]:
    lines = [line.removeprefix("#").strip() for line in TINY_LORA.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("seektune ")][1:]


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path) -> None:
    """The page's run first, then the recipe's own into another folder, whose base is the page's BASE."""
    rows = write_hellaswag(tmp_path / "rows", 40, 6)
    small = [f"--data.path={rows}", "--steps=2", "--batch.global_size=4", "--batch.micro_size=4", "--evaluate.limit=2"]
    train, export, merge, pair = commands_of_page()
    prepared = [[word.replace("runs/adapted", "runs/second") for word in words] for words in commands_of_recipe()]
    assert pair[0] == "automodel"
    pair = ["seektune", "train", *pair[1:]]
    every = (train, *prepared, pair, merge)
    assert [words[1] for words in every] == ["train", "train", "convert", "train", "train", "merge"]
    for words in every:
        words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
        words = ["runs/base/released" if word == "BASE" else word for word in words]
        answer = seektune(*words[1:], *(small if words[1] == "train" else []), cwd=tmp_path)
        assert answer.returncode == 0, (words, answer.stderr)
    assert "is kept" in answer.stdout
    served = {"layers.1.attn.wq_b": LoraDelta(torch.ones(2, 4), torch.ones(8, 2), 1.0)}
    write_adapter(tmp_path / "runs" / "served" / "adapter", served, {})
    assert seektune(*export[1:], cwd=tmp_path).returncode == 0
    assert (tmp_path / "served" / "adapter_config.json").exists()
    assert (tmp_path / "merged" / "config.json").exists()


@pytest.mark.usefixtures("any_memory")
@pytest.mark.parametrize("command", NODE, ids=" ".join)
def test_a_job_for_a_node_is_the_job_it_says(command: list[str], launched: list[LaunchConfig]) -> None:
    typer.main.get_command(cli.automodel_app)(command[1:], standalone_mode=False)()
    assert [(job.processes, job.nodes) for job in launched] == [(8, 1)]


def test_there_are_commands_to_test() -> None:
    assert (len(EVERY), len(FLASH), len(NODE)) == (6, 17, 7)
