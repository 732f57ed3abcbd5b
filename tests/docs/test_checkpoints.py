"""Every command that docs/checkpoints.md shows runs, in the order of the page."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.places import ROOT
from tests.run_cli import seektune

PAGE = ROOT / "docs" / "checkpoints.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_every_command_of_the_page_runs(parity_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(parity_folder, tmp_path / "released")
    model = DeepseekV4ForCausalLM.from_pretrained(parity_folder)
    with torch.no_grad():
        model.norm.weight.add_(1)
    model.save_pretrained(tmp_path / "trained")
    answers = {}
    for command in commands():
        assert command[0] == "seektune"
        answers[" ".join(command)] = seektune(*command[1:], cwd=tmp_path)
    assert [answer.returncode for answer in answers.values()] == [0, 0, 0, 0, 1], answers
    assert '"name": "norm.weight"' in list(answers.values())[-1].stdout
    assert len(answers) == 5
