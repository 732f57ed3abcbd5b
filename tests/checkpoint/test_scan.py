"""Scanning damaged folders: reports everything readable and everything wrong."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seektune.checkpoint.convert import convert
from seektune.checkpoint.formats import FORMATS, READABLE
from seektune.checkpoint.scan import FolderScan, Mismatch, format_of, mismatch, scan
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(parity_folder: Path, tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(parity_folder, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("expected.safetensors"))
    )


@pytest.fixture(scope="module")
def shapes(parity_folder: Path) -> dict[str, tuple[int, ...]]:
    model = DeepseekV4ForCausalLM(DeepseekV4Config.from_pretrained(parity_folder), device="meta")
    return {name: tuple(x.shape) for name, x in model.state_dict().items()}


def index_changed(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of the first file; the index stays."""
    tensors = load_file(folder / FIRST)
    change(tensors)
    save_file(tensors, folder / FIRST)


def test_complete_checkpoint_has_no_problems(folder: Path, shapes):
    found = scan(folder)
    assert (found.problems, found.strays) == ([], [])
    assert (len(found.tensors), len(found.weights())) == (427, 263)
    assert found.files == {name: (folder / name).stat().st_size for name in (FIRST, SECOND)}
    assert mismatch(found, shapes) == Mismatch()
    assert found.kind("layers.1.attn.wq_a.weight") == "fp8"
    assert found.is_scale("layers.1.attn.wq_a.scale")
    assert not found.is_scale("layers.1.hc_attn_scale")


@pytest.mark.parametrize("format", ["released", "fp8", "base", "bf16", "fp32"])
def test_format_is_detected_from_dtypes(parity_folder: Path, tmp_path: Path, format: str, shapes):
    convert(parity_folder, tmp_path / "out", format)
    found = scan(tmp_path / "out")
    assert format_of(found) == format
    assert mismatch(found, shapes) == Mismatch()


@pytest.mark.slow
def test_experts_with_e8m0_scales_are_another_format(parity_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(FORMATS, "fp8", READABLE["fp8-e8m0"])
    convert(parity_folder, tmp_path / "old", "fp8")
    monkeypatch.undo()
    assert format_of(scan(tmp_path / "old")) == "fp8-e8m0"
    with pytest.raises(ValueError, match="'fp8-e8m0' is unknown"):
        convert(tmp_path / "old", tmp_path / "out", "fp8-e8m0")
    done = convert(tmp_path / "old", tmp_path / "new", "fp8")
    assert done.inexact == []
    assert format_of(scan(tmp_path / "new")) == "fp8"


def test_mixed_dtypes_have_no_format(folder: Path):
    rewritten(folder, lambda tensors: tensors.update({"embed.weight": tensors["embed.weight"].float()}))
    assert format_of(scan(folder)) is None


def test_missing_file_is_reported_and_others_are_read(folder: Path, shapes):
    (folder / SECOND).unlink()
    found = scan(folder)
    assert [SECOND in problem and "missing" in problem for problem in found.problems] == [True]
    assert set(found.tensors) == set(load_file(folder / FIRST))
    odd = mismatch(found, shapes)
    assert odd.missing
    assert not odd.extra
    assert not odd.wrong
    assert found.files.keys() == {FIRST}


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8], ids=["empty", "text", "absurd"])
def test_damaged_file_is_reported_and_its_bytes_are_counted(folder: Path, content: bytes):
    (folder / FIRST).write_bytes(content)
    found = scan(folder)
    assert len(found.problems) == 1
    assert f"{FIRST} is damaged" in found.problems[0]
    assert found.files[FIRST] == len(content)
    assert set(found.tensors) == set(load_file(folder / SECOND))


def test_disagreements_of_index_and_files_are_reported(folder: Path):
    def change(placed: dict[str, str]) -> None:
        placed["layers.9.extra"] = FIRST
        placed["embed.weight"] = SECOND
        del placed["layers.0.attn_norm.weight"]

    index_changed(folder, change)
    problems = "\n".join(scan(folder).problems)
    assert f"{FIRST} lacks layers.9.extra, which {INDEX} lists in it" in problems
    assert f"{FIRST} holds embed.weight, which {INDEX} places in {SECOND}" in problems
    assert f"{SECOND} lacks embed.weight" in problems
    assert f"holds layers.0.attn_norm.weight, which {INDEX} does not list" in problems


def test_without_an_index_all_files_are_read(folder: Path):
    (folder / INDEX).unlink()
    found = scan(folder)
    assert len(found.tensors) == 427
    assert [INDEX in problem for problem in found.problems] == [True]
    (folder / INDEX).write_text("[]")
    again = scan(folder)
    assert len(again.tensors) == 427
    assert ["is not an index" in problem for problem in again.problems] == [True]


def test_unindexed_files_are_strays(folder: Path, parity_folder: Path):
    shutil.copy(parity_folder / "expected.safetensors", folder)
    found = scan(folder)
    assert (found.strays, found.problems, len(found.tensors)) == (["expected.safetensors"], [], 427)


def test_empty_folder_and_missing_folder(tmp_path: Path):
    found = scan(tmp_path)
    assert (found.tensors, found.files, len(found.problems)) == ({}, {}, 1)
    assert format_of(found) is None
    with pytest.raises(ValueError, match="none is not a folder"):
        scan(tmp_path / "none")


WRONG = {
    "shape": (
        lambda t: t.update({"norm.weight": torch.ones(3).bfloat16()}),
        r"norm.weight has shape \[3\] instead of \[128\]",
    ),
    "scales": (
        lambda t: t.update({"layers.0.attn.wq_a.scale": t["layers.0.attn.wq_a.scale"].repeat(2, 1)}),
        r"layers.0.attn.wq_a.scale has shape \[2, 1\] instead of \[1, 1\]",
    ),
    "no scales": (
        lambda t: t.pop("layers.0.attn.wq_a.scale"),
        "layers.0.attn.wq_a.weight has dtype F8_E4M3 without scales",
    ),
    "integers": (
        lambda t: t.update({"norm.weight": torch.ones(128).long()}),
        "norm.weight has dtype I64, which no format",
    ),
    "bytes": (
        lambda t: t.update({"norm.weight": torch.ones(128).byte()}),
        "norm.weight has dtype U8, which no supported format uses",
    ),
    "fp8 vector": (
        lambda t: t.update({"norm.weight": torch.ones(128).to(torch.float8_e4m3fn), "norm.scale": torch.ones(1)}),
        "norm.weight has dtype F8_E4M3, which only matrices can have",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_tensors_that_do_not_fit_the_config_are_reported(parity_folder: Path, tmp_path: Path, change, message, shapes):
    tensors = {}
    for name in (FIRST, SECOND):
        tensors |= load_file(parity_folder / name)
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    odd = mismatch(scan(tmp_path), shapes)
    assert len(odd.wrong) == 1
    assert re.match(message, odd.wrong[0])
    assert (odd.missing, odd.extra) == ([], [])


def test_missing_and_extra_tensors_are_reported(folder: Path, shapes):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["layers.9.attn_norm.weight"] = tensors.pop("embed.weight")

    rewritten(folder, change)
    odd = mismatch(scan(folder), shapes)
    assert (odd.missing, odd.extra, odd.wrong) == (["embed.weight"], ["layers.9.attn_norm.weight"], [])
    assert isinstance(scan(folder), FolderScan)
