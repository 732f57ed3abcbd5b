"""Update-to-weight ratios: those of known changes, and in the lines of the steps that are measured."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seektune.io.jsonl import read_records
from seektune.io.run_files import METRICS
from seektune.parallel.mesh import Mesh
from seektune.train.trainer import Trainer
from seektune.train.update_ratio import NAMES, copies, kind_of, update_ratios

from .runs import go
from .tiny_run import small_model


@pytest.mark.slow
def test_each_kind_has_the_ratio_of_its_change() -> None:
    model = small_model()
    before = copies(model.named_parameters())
    factors = {kind: 1 + 0.01 * place for place, kind in enumerate(NAMES, start=1)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= factors[kind_of(name)]
    found = update_ratios(before, model.named_parameters(), Mesh.alone())
    assert found == pytest.approx({f"update_ratio_{kind}": factors[kind] - 1 for kind in NAMES}, rel=1e-4)


def test_frozen_weights_are_left_out() -> None:
    model = small_model()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    found = update_ratios(copies(model.named_parameters()), model.named_parameters(), Mesh.alone())
    assert found == {"update_ratio_head": 0.0}


@pytest.mark.slow
def test_measured_steps_have_them_in_their_line(tmp_path: Path) -> None:
    def measure(trainer: Trainer) -> None:
        trainer.settings = replace(trainer.settings, update_ratios_every=2)

    go(tmp_path, 3, measure)
    lines = read_records(tmp_path / METRICS)
    measured = [[name for name in line if name.startswith("update_ratio")] for line in lines]
    assert measured == [[], [f"update_ratio_{kind}" for kind in NAMES], []]
    assert all(0 < lines[1][name] < 1 for name in measured[1])
