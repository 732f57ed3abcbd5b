"""The command `inspect`: the card of whole checkpoints, and of folders in which something is wrong."""

import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from seektune.checkpoint.convert import convert
from seektune.checkpoint.export import ExportReport, export_tensors
from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.header import header_bytes
from seektune.checkpoint.source import StateSource
from seektune.checkpoint.write import file_size, shard_limit, shard_names, split, write_index
from seektune.data.tokenizer import load_tokenizer
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.workflows.convert import convert_checkpoint
from seektune.workflows.inspect import inspect, read_card
from tests.run_cli import seektune

pytestmark = pytest.mark.slow

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(parity_folder: Path, tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(parity_folder, tmp_path / "model", ignore=shutil.ignore_patterns("expected.safetensors"))
    )


@cache
def shapes_of(preset: str) -> dict[str, torch.Tensor]:
    """A model's tensors without data."""
    return DeepseekV4ForCausalLM(DeepseekV4Config.preset(preset), device="meta").state_dict()


def hollow(folder: Path, preset: str, format: str = "released") -> Path:
    """A checkpoint of that preset whose files have their real size and headers, and no data on disk: a hole."""
    folder.mkdir()
    config = DeepseekV4Config.preset(preset)
    (folder / "config.json").write_text(json.dumps(FORMATS[format].config(config.to_dict())))
    planned = list(export_tensors(StateSource(shapes_of(preset)), FORMATS[format], ExportReport()))
    shards = split(planned, shard_limit(planned))
    for name, shard in zip(shard_names(len(shards)), shards, strict=True):
        tensors = {tensor: kind for piece in shard for tensor, kind in piece.tensors.items()}
        (folder / name).write_bytes(header_bytes(tensors))
        os.truncate(folder / name, file_size(shard))
    write_index(folder, shards)
    return folder


def changed(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_the_card_of_a_whole_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert inspect(folder)
    assert capsys.readouterr().out.splitlines() == [
        f"checkpoint:  {folder}",
        "variant:     other",
        "layers:      4: 1 SWA, 2 CSA, 1 HCA",
        "gates:       1 hash, 3 top-k",
        "MTP:         1 block",
        "parameters:  1.68 M main, 364.42 K MTP; 1.16 M active per token",
        "format:      released",
        "on disk:     427 tensors in 2 files, 2.31 MB",
        "  F8_E4M3    44 tensors         630.78 kB",
        "  F32        50 tensors         587.06 kB",
        "  BF16       48 tensors         561.54 kB",
        "  I8         120 tensors        491.52 kB",
        "  F8_E8M0    164 tensors         30.79 kB",
        "  I64        1 tensor             3.84 kB",
        "complete:    every tensor that config.json promises is here in its shape, and no other",
    ]


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_the_card_of_flash_is_read_from_headers_alone(tmp_path: Path):
    """69,187 tensors in 46 files of 160 GB."""
    flash = hollow(tmp_path / "flash", "flash")
    before = bytes_read()
    card = read_card(flash)
    assert 1e6 < bytes_read() - before < 50e6
    assert card.complete
    assert card.notes == []
    assert (card.format, card.tensors, len(card.files)) == ("released", 69_187, 46)
    assert sum(amount["bytes"] for amount in card.dtypes.values()) == 159_609_485_896
    assert card.dtypes["I8"] == {"tensors": 33_792, "bytes": 33_792 * 2048 * 4096 // 2}
    assert card.architecture is not None
    assert card.architecture.variant == "flash"
    assert card.architecture.layers == {"SWA": 2, "CSA": 21, "HCA": 20}
    assert (card.architecture.gates, card.architecture.mtp_blocks) == ({"hash": 3, "top-k": 40}, 1)
    found = {name: round(count / 1e9, 2) for name, count in card.architecture.parameters.items()}
    assert found == {"main": 284.33, "mtp": 6.61, "active": 13.27}


@pytest.mark.parametrize(
    ("preset", "format", "variant"),
    [
        ("tiny", "bf16", "tiny"),
        ("tiny", "base", "tiny"),
        pytest.param("flash", "base", "flash-base", marks=pytest.mark.slow),
        pytest.param("flash", "bf16", "flash", marks=pytest.mark.slow),
        pytest.param("pro", "released", "pro", marks=pytest.mark.slow),
        pytest.param("pro", "base", "pro-base", marks=pytest.mark.slow),
    ],
)
def test_variants_and_formats_are_told_apart(tmp_path: Path, preset: str, format: str, variant: str):
    card = read_card(hollow(tmp_path / "model", preset, format))
    assert card.complete
    assert card.architecture is not None
    assert (card.architecture.variant, card.format, card.notes) == (variant, format, [])


def test_a_fine_tune_is_still_its_variant_and_another_width_is_not(tmp_path: Path):
    tiny = hollow(tmp_path / "model", "tiny", "bf16")
    changed(tiny, initializer_range=0.5, transformers_version="9", mine=1)
    assert read_card(tiny).to_dict()["architecture"]["variant"] == "tiny"
    changed(tiny, routed_scaling_factor=9.0)
    assert read_card(tiny).to_dict()["architecture"]["variant"] == "other"


def test_a_missing_file_costs_the_answer_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / SECOND).unlink()
    assert not inspect(folder)
    said = capsys.readouterr().out
    assert "layers:      4: 1 SWA, 2 CSA, 1 HCA" in said
    assert f"problem:     {folder / SECOND} is missing" in said
    missing = next(line for line in said.splitlines() if line.startswith("missing:"))
    assert "layers.2.ffn_norm.weight" in missing
    assert missing.endswith("more")
    assert "complete:" not in said


def test_missing_extra_and_misshapen_tensors_are_counted_and_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    changed(folder, num_hidden_layers=3, compress_ratios=[0, 4, 128, 0], vocab_size=161)
    assert not inspect(folder)
    lines = capsys.readouterr().out.splitlines()
    extra = next(line for line in lines if line.startswith("extra:"))
    wrong = next(line for line in lines if line.startswith("wrong:"))
    assert "layers.3." in extra
    assert wrong.startswith("wrong:       3 tensors: embed.weight has shape [160, 128] instead of [161, 128]")
    assert not any(line.startswith("missing:") for line in lines)


@pytest.mark.parametrize("text", [None, "{", '{"model_type": "llama"}', '{"hidden_size": 3}'])
def test_without_a_config_the_files_are_still_told(folder: Path, text: str | None, capsys: pytest.CaptureFixture[str]):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    assert not inspect(folder)
    said = capsys.readouterr().out
    assert "format:      released" in said
    assert "427 tensors in 2 files, 2.31 MB" in said
    assert "config.json" in said.split("problem:")[1]
    assert "variant:" not in said


def test_an_empty_folder_has_a_card_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert not inspect(tmp_path)
    said = capsys.readouterr().out
    assert "on disk:     0 tensors in 0 files, 0 bytes" in said
    assert said.count("problem:") == 2


def test_a_config_that_tells_other_libraries_another_format_is_noted(folder: Path, tmp_path: Path):
    changed(folder, expert_dtype=None)
    card = read_card(folder)
    assert card.complete, "the dtypes on disk decide here"
    assert len(card.notes) == 1
    assert "expert_dtype None, but the tensors are released" in card.notes[0]
    done = convert(folder, tmp_path / "bf16", "bf16")
    assert read_card(done.folder).notes == []
    changed(done.folder, quantization_config={"quant_method": "fp8"})
    assert "quantization_config" in read_card(done.folder).notes[0]


def test_strays_are_noted(parity_folder: Path):
    card = read_card(parity_folder)
    assert card.complete
    assert card.notes == ["expected.safetensors is no part of the checkpoint: its index names no tensor there"]


def test_links_that_lead_nowhere(folder: Path):
    """One that is a stray stops nobody; one that is needed is an incomplete download."""
    (folder / "extra.safetensors").symlink_to("nowhere")
    card = read_card(folder)
    assert card.complete
    assert card.notes == ["extra.safetensors is no part of the checkpoint: its index names no tensor there"]
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to("nowhere")
    card = read_card(folder)
    assert any("is a link to a file that does not exist; the copy or download is" in each for each in card.problems)
    assert card.missing


def test_a_weight_and_its_scales_are_judged_together(folder: Path):
    for file in folder.glob("model-*.safetensors"):
        tensors = load_file(file)
        raw = {name: x.view(torch.uint8) if x.dtype == torch.float8_e8m0fnu else x for name, x in tensors.items()}
        save_file(raw, file)
    wrong = read_card(folder).wrong[0]
    assert wrong.endswith("has dtype F8_E4M3 with U8 scales, which no supported format uses")
    with pytest.raises(ValueError, match=r"has dtype .* with U8 scales, which no supported format uses"):
        DeepseekV4ForCausalLM.from_pretrained(folder)


def test_a_tokenizer_of_another_vocabulary_is_noted(tmp_path: Path):
    tiny = hollow(tmp_path / "model", "tiny", "bf16")
    tokenizer = load_tokenizer(DeepseekV4Config.from_pretrained(tiny).vocab_size)
    tokenizer.save(tiny)
    assert read_card(tiny).notes == []
    spec = json.loads(tokenizer.text)
    # spelled otherwise, but the same
    spec["model"]["merges"] = [merge.split(" ") for merge in spec["model"]["merges"]]
    (tiny / "tokenizer.json").write_text(json.dumps(spec))
    assert read_card(tiny).notes == []
    spec["model"]["vocab"] = dict(zip(spec["model"]["vocab"], reversed(spec["model"]["vocab"].values()), strict=True))
    for text, said in ((json.dumps(spec), "other ids; DeepSeek"), ("{", "cannot be read"), ("{}", "cannot be read")):
        (tiny / "tokenizer.json").write_text(text)
        card = read_card(tiny)
        assert card.complete
        assert said in card.notes[0]
    spec["added_tokens"].append({"content": "<|im_start|>", "id": len(spec["model"]["vocab"]) + 10**6})
    (tiny / "tokenizer.json").write_text(json.dumps(spec))
    assert "outside of vocab_size" in read_card(tiny).problems[0]
    with pytest.raises(ValueError, match="outside of vocab_size"):
        convert_checkpoint(str(tiny), tmp_path / "out", "fp32")


def test_json_and_exit_codes(folder: Path, tmp_path: Path):
    whole = seektune("inspect", folder, "--json")
    assert (whole.returncode, whole.stderr) == (0, "")
    card = json.loads(whole.stdout)
    assert card["complete"] is True
    assert card["format"] == "released"
    assert card["architecture"]["parameters"]["mtp"] == 364_423
    assert card["files"].keys() == {FIRST, SECOND}
    (folder / FIRST).write_bytes(b"")
    broken = seektune("inspect", folder, "--json")
    assert (broken.returncode, broken.stderr) == (1, "")
    card = json.loads(broken.stdout)
    assert card["complete"] is False
    assert len(card["missing"]) > 5, "all names, not the first ones"
    nowhere = seektune("inspect", tmp_path / "nowhere")
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert nowhere.stderr == f"seektune: {tmp_path / 'nowhere'} is not a folder\n"


@pytest.mark.parametrize(
    ("key", "value"), [("n_routed_experts", 10**6), ("hidden_size", 2**40), ("vocab_size", 10**30)]
)
def test_absurd_numbers_are_a_problem_and_take_no_time(folder: Path, key: str, value: int):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    card = read_card(folder)
    assert any("larger than any DeepSeek-V4" in problem for problem in card.problems)
    with pytest.raises(ValueError, match="larger than any DeepSeek-V4"):
        convert_checkpoint(str(folder), folder / "new", "bf16")


@pytest.mark.parametrize("listed", [{"norm.weight": "a\0"}, {"norm.weight": "\ud800"}, {"\ud800": "a"}])
def test_an_index_of_names_that_are_none_is_a_problem(folder: Path, listed: dict[str, str]):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    assert any("is not an index" in problem for problem in read_card(folder).problems)
    "".join(read_card(folder).problems).encode()
