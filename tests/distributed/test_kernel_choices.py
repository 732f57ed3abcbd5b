"""Processes of a job on several machines run the same kernel for a shape, whatever each would measure."""

import json
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist

from seektune.kernels.deepseek import choice

from .workers import run_workers


def choose_in_turn(folder: str) -> tuple[list[str], int, dict[str, str]]:
    """Two shapes, the first needed by rank 0 first, the second by rank 1: the choices, measurements, and the file."""
    rank = dist.get_rank()
    theirs = ModuleType("made_up")
    vars(theirs).update(PACKAGE="made_up", double=lambda x: "theirs")
    asked = []

    def clock(work):  # type: ignore[no-untyped-def]
        """DeepSeek's kernel is faster on rank 0's machine only."""
        asked.append(work())
        return 1.0 if (asked[-1] == "theirs") == (rank == 0) else 2.0

    file = Path(folder) / f"machine{rank}" / "gpu.json"
    found = []
    for size, first in ((4, 0), (8, 1)):
        arguments = (torch.zeros(2, size),)
        for turn in (first, 1 - first):
            if rank == turn:
                choices = choice.Choices(file)
                run = choice.choose("double", theirs, lambda x: "ours", arguments, False, choices, clock)
                found.append(run(*arguments))
            dist.barrier()
    return found, len(asked), json.loads(file.read_text())


def test_the_first_choice_holds_for_all_processes(tmp_path: Path):
    before = tmp_path / "machine1" / "gpu.json"
    before.parent.mkdir()
    # an earlier run on this machine alone
    before.write_text(json.dumps({"double made_up unknown inference float32:2x4": "ours"}))
    answers = run_workers(2, choose_in_turn, str(tmp_path))
    assert [found for found, _, _ in answers] == [["theirs", "ours"]] * 2
    assert [asked for _, asked, _ in answers] == [2, 2], "each measures what it needs first"
    assert answers[0][2] == answers[1][2], "a later job repeats the choices from either file"
