"""docs/qat.md: its commands run, one after the other, and its numbers are those of bench/qat.json."""

import json
import re
import shlex
from pathlib import Path

import pytest

from seektune.data.datasets.synthetic import write_hellaswag
from tests.places import ROOT
from tests.run_cli import seektune, without_room

from .guides import blocks, text_of

PAGE = "docs/qat.md"
SMALL = ("--data.path=rows", "--steps=2", "--schedule.warmup_steps=1", "--batch.global_size=4", "--batch.micro_size=4")


@pytest.mark.slow
def test_its_commands_run(tmp_path: Path) -> None:
    write_hellaswag(tmp_path / "rows", 40, 6)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    lines = [line for block in blocks(PAGE, "sh") for line in block.replace("\\\n", " ").splitlines()]
    said = []
    for line in lines:
        words = shlex.split(line)[1:]
        small = [*SMALL, "--evaluate.tasks=[]", "--loss.mtp_weight=0"] if words[0] == "train" else []
        answer = seektune(*words, *small, cwd=tmp_path)
        assert (answer.returncode, without_room(answer.stderr)) == (0, "")
        said.append(answer.stdout)
    assert len(said) == 4
    assert "weights in the format released" in said[0]
    assert "released" in said[1]
    assert "distill, teacher unrounded/model" in said[3]
    config = json.loads((tmp_path / "unrounded/model/config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config, "the teacher is not rounded"


def test_its_numbers_are_those_of_the_benchmark() -> None:
    found = json.loads((ROOT / "bench" / "qat.json").read_text(encoding="utf-8"))
    text = text_of(PAGE)
    for name in ("pretraining", "tuning"):
        for what, each in found[name].items():
            row = f"| {what} | {each['loss']:.4f} | {each['lost']:+.4f} | {each['deviation']:.4f} |"
            assert row in text, row
    for each in found["seconds of a step"]:
        numbers = " | ".join(f"{each[form]:.3f}" for form in ("none", "released", "fp8"))
        assert re.search(rf"^\| {each['model']} \| {re.escape(numbers)} \|$", text, re.MULTILINE), numbers


def test_its_longer_comparison_is_that_of_the_benchmark() -> None:
    found = json.loads((ROOT / "bench" / "qat_tuning.json").read_text(encoding="utf-8"))
    text = text_of(PAGE)
    names = ("unrounded", "rounded after tuning", "trained with rounding")
    for rate, each in found["rates"].items():
        low, high = each["interval"]
        losses = " | ".join(f"{each[name]:.4f}" for name in names)
        row = f"| {rate} | {losses} | {each['gain']:+.4f} | {low:+.4f} to {high:+.4f} |"
        assert row in text, row
    assert f"the released format has {found['before tuning']:.4f}" in text
