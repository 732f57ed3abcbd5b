"""The command `convert`: what it says, what it refuses, and its exit codes."""

import json
import os
import pty
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seektune.checkpoint.resumable_dir import resumable_dir
from seektune.io import console
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.workflows.convert import convert_checkpoint
from tests.places import ROOT
from tests.run_cli import CODE, python, seektune

pytestmark = pytest.mark.slow

FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture
def source(parity_folder: Path, tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(parity_folder, tmp_path / "source", ignore=shutil.ignore_patterns("expected.safetensors"))
    )


def test_the_way_there_and_back_in_words(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    convert_checkpoint(str(source), tmp_path / "bf16", "bf16")
    assert capsys.readouterr().out.splitlines() == [
        "tensors: 99 copied byte for byte, 164 re-encoded exactly, 0 rounded",
        f"checkpoint: {tmp_path / 'bf16'}",
    ]
    convert_checkpoint(str(tmp_path / "bf16"), tmp_path / "back", "released", str(source))
    assert "tensors: 263 copied byte for byte, 0 re-encoded exactly, 0 rounded" in capsys.readouterr().out
    assert "FP4 experts" in (tmp_path / "back" / "README.md").read_text(encoding="utf-8")
    convert_checkpoint(str(source), tmp_path / "bf16", "bf16")
    assert capsys.readouterr().out.startswith("1 of 1 shards were complete from an earlier call\n")


def test_values_that_cannot_be_kept_are_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trained = DeepseekV4ForCausalLM.from_pretrained(source)
    with torch.no_grad():
        for layer in trained.layers:
            layer.attn.wq_a.weight.normal_()
            layer.attn.wq_b.weight.normal_()
    trained.save_pretrained(tmp_path / "trained", format="fp32")
    done = convert_checkpoint(str(tmp_path / "trained"), tmp_path / "out", "released", str(source))
    assert len(done.inexact) == 8
    said = capsys.readouterr().out
    assert "255 copied byte for byte, 0 re-encoded exactly, 8 rounded" in said
    assert "released cannot hold all values of layers.0.attn.wq_a.weight, layers.0.attn.wq_b.weight" in said
    assert "and 3 more" in said
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["shards"]["model.safetensors"]["inexact"] == done.inexact


def test_foreign_code_is_left_out_with_a_note(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config_changed(auto_map={"AutoConfig": "theirs.Config"}, architectures=["Theirs"])(source)
    (source / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["theirs.T", null]}, "a": 1}')
    convert_checkpoint(str(source), tmp_path / "out", "bf16")
    notes = capsys.readouterr().out.splitlines()[:2]
    assert notes[0].startswith(
        f"note: {source / 'config.json'} has auto_map and architectures, which names code of others"
    )
    assert notes[1].startswith(f"note: {source / 'tokenizer_config.json'} has auto_map")
    assert not {"auto_map", "architectures"} & json.loads((tmp_path / "out" / "config.json").read_text()).keys()
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"a": 1}


def test_a_link_that_leads_nowhere_and_is_no_part_of_the_checkpoint_stops_nobody(source: Path, tmp_path: Path):
    (source / "extra.safetensors").symlink_to("nowhere")
    assert convert_checkpoint(str(source), tmp_path / "out", "bf16").copied == 99


def without(name: str):
    def spoil(source: Path) -> None:
        tensors = load_file(source / FIRST)
        del tensors[name]
        save_file(tensors, source / FIRST)
        index = json.loads((source / "model.safetensors.index.json").read_text())
        del index["weight_map"][name]
        (source / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def config_changed(**changes: object):
    def spoil(source: Path) -> None:
        values = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(values | changes))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            without("layers.0.attn_norm.weight"),
            r"lacks layers\.0\.attn_norm\.weight, which its config\.json promises; see",
        ),
        (
            without("layers.0.attn.wq_a.scale"),
            r"layers\.0\.attn\.wq_a\.weight has dtype F8_E4M3 without scales \(layers\.0\.attn\.wq_a\.scale is missing",
        ),
        (
            config_changed(hidden_size=64),
            r"does not fit its config\.json: .* \([1-9][0-9]* more faults\); seektune inspect",
        ),
        (config_changed(num_hidden_layers=3, compress_ratios=[0, 4, 128, 0]), r"holds layers\.3\..* does not have"),
        (config_changed(model_type="deepseek_v41"), "V4.1 is another architecture"),
        (lambda source: (source / "config.json").unlink(), r"config\.json does not exist"),
        (lambda source: (source / FIRST).unlink(), f"{FIRST} is missing"),
        (lambda source: (source / FIRST).write_bytes(b""), f"{FIRST} is damaged"),
    ],
    ids=["tensor", "scales", "shapes", "layers", "V4.1", "config", "shard", "empty shard"],
)
def test_an_incomplete_source_is_refused_before_anything_is_written(source: Path, tmp_path: Path, spoil, said: str):
    spoil(source)
    with pytest.raises(ValueError, match=said) as error:
        convert_checkpoint(str(source), tmp_path / "out", "bf16")
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_the_format_is_judged_before_anything_is_fetched(tmp_path: Path):
    with pytest.raises(ValueError, match="'int4' is unknown"):
        convert_checkpoint("nobody/nothing", tmp_path / "out", "int4")


def test_a_source_or_original_that_is_nowhere_is_named(source: Path, tmp_path: Path):
    for words in ((str(tmp_path / "nowhere"), None), (str(source), "not a place")):
        with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
            convert_checkpoint(words[0], tmp_path / "out", "bf16", words[1])


def test_exit_codes_and_one_line_for_every_refusal(source: Path, tmp_path: Path):
    done = seektune("convert", source, tmp_path / "out", "--to", "fp8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"checkpoint: {tmp_path / 'out'}\n")
    refused = seektune("convert", source, tmp_path / "out", "--to", "bf16")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"seektune: {tmp_path / 'out'} already exists and is not this conversion; choose another folder\n"
    )
    incomplete = seektune("convert", source, tmp_path / "other")
    assert (incomplete.returncode, incomplete.stderr) == (2, "seektune: Missing option '--to'.\n")


def test_concurrent_call_is_rejected(source: Path, tmp_path: Path):
    with resumable_dir(tmp_path / "out", {}):
        answer = seektune("convert", source, tmp_path / "out", "--to", "bf16")
    assert answer.returncode == 2
    assert "another process is writing" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_full_disk_takes_one_line_and_exit_1(source: Path, tmp_path: Path):
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000));"
        "import seektune.checkpoint.write as w; w.SHARD_BYTES = 300_000;" + CODE
    )
    answer = python(code, "convert", str(source), str(tmp_path / "out"), "--to", "bf16")
    assert answer.returncode == 1, answer.stderr
    assert answer.stderr.count("\n") == 1
    assert ".safetensors: File too large; 0 of 5 shards are complete; run the same command again" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_progress_is_a_bar_of_bytes_on_a_terminal(source: Path, tmp_path: Path):
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", CODE, "convert", str(source), str(tmp_path / "out"), "--to", "bf16"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment) as process:
        os.close(follower)
        shown = read_terminal(leader)
    os.close(leader)
    assert process.returncode == 0
    assert "converting to bf16" in shown
    assert "4.4/4.4 MB" in shown


def read_terminal(leader: int) -> str:
    """All that is shown until nobody has the terminal any more; a bar draws more often than its buffer could hold."""
    shown = b""
    with suppress(OSError):
        while part := os.read(leader, 10_000):
            shown += part
    return shown.decode()


def test_progress_is_plain_lines_elsewhere_and_seldom(capsys: pytest.CaptureFixture[str], monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.byte_bar("converting") as progress:
        for done in range(0, 5_000_001, 1_000_000):
            progress(done, 5_000_000)
            now[0] += 6
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines() == ["converting: 2.00 MB of 5.00 MB", "converting: 4.00 MB of 5.00 MB"]


@pytest.mark.parametrize(
    ("number", "count", "size"),
    [
        (0, "0", "0 bytes"),
        (999, "999", "999 bytes"),
        (1500, "1.50 K", "1.50 kB"),
        (159_609_485_896, "159.61 B", "159.61 GB"),
    ],
)
def test_numbers_are_short(number: int, count: str, size: str):
    assert (console.many(number), console.size(number)) == (count, size)


def test_memory_that_does_not_suffice_is_told_without_words_about_training():
    code = (
        "import sys; from seektune.workflows import convert; from seektune.cli import main\n"
        'def short(*_): raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory")\n'
        "convert.convert_checkpoint = short; sys.argv = ['seektune', 'convert', 'a', 'b', '--to', 'bf16']; main()"
    )
    answer = python(code)
    assert answer.returncode == 1
    assert answer.stderr.startswith("seektune: out of memory; the largest tensor needs room as it is read and")
    assert "batch" not in answer.stderr
