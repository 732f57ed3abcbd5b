"""Converting a folder: resumable after any interruption, never over other files, with memory for one tensor."""

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seektune.checkpoint import convert as module
from seektune.checkpoint.convert import convert
from seektune.checkpoint.resumable_dir import RECORD, resumable_dir
from tests.run_cli import RETURN_MEMORY, python

from .reader import raw, read_files

pytestmark = pytest.mark.slow

SMALL = 300_000
"""A shard size that splits the checkpoint into about a dozen shards."""


@pytest.fixture
def source(parity_folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint."""
    return Path(
        shutil.copytree(parity_folder, tmp_path / "source", ignore=shutil.ignore_patterns("expected.safetensors"))
    )


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """Every file of an uninterrupted conversion to bf16."""
    done = convert(source, tmp_path / "whole", "bf16", shard_bytes=SMALL)
    assert done.shards > 8
    return read_files(done.folder)


def scratch_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.converting")


class Interrupted(BaseException):
    """Raised by a progress callback to interrupt a conversion."""


def interrupt_at(call: int) -> Callable[[int, int], None]:
    calls = 0

    def progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Interrupted

    return progress


def test_result_has_only_weights_index_config_and_companions(source: Path, tmp_path: Path):
    (source / "tokenizer.json").write_text('{"a": 1}')
    (source / "chat.jinja").write_text("{{ a }}")
    (source / "README.md").write_bytes("Grüße".encode())
    (source / "notes.py").write_text("print()")
    (source / "sub").mkdir()
    done = convert(source, tmp_path / "deep" / "er" / "out", "bf16")
    assert done.folder == tmp_path / "deep" / "er" / "out"
    assert set(read_files(done.folder)) == {
        "model.safetensors",
        "config.json",
        RECORD,
        "tokenizer.json",
        "chat.jinja",
        "README.md",
    }
    for name in ("tokenizer.json", "chat.jinja", "README.md"):
        assert (done.folder / name).read_bytes() == (source / name).read_bytes()
    assert [file.name for file in done.folder.parent.iterdir()] == ["out"]
    assert (done.shards, done.resumed, done.copied, done.converted, done.inexact) == (1, 0, 99, 164, [])
    record = json.loads((done.folder / RECORD).read_text())
    assert record["complete"] is True
    assert len(record["shards"]["model.safetensors"]["converted"]) == 164


def test_progress_counts_every_byte_of_the_tensors(source: Path, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    done = convert(source, tmp_path / "out", "bf16", progress=lambda *now: seen.append(now), shard_bytes=SMALL)
    total = sum(len(data) for _, _, data in raw(done.folder).values())
    assert [now[0] for now in seen] == sorted(now[0] for now in seen)
    assert seen[-1] == (total, total)
    assert len(seen) == 263


def test_second_call_writes_nothing(source: Path, tmp_path: Path):
    first = convert(source, tmp_path / "out", "bf16", shard_bytes=SMALL)
    before = {file.name: file.stat().st_mtime_ns for file in first.folder.iterdir()}
    second = convert(source, tmp_path / "out", "bf16", shard_bytes=SMALL)
    assert (second.resumed, second.shards) == (first.shards, first.shards)
    assert (second.copied, second.converted) == (99, 164)
    assert {file.name: file.stat().st_mtime_ns for file in first.folder.iterdir()} == before


@pytest.mark.parametrize("call", [1, 2, 60, 150, 262, 263])
def test_interrupted_conversion_resumes_with_same_bytes(
    source: Path, tmp_path: Path, whole: dict[str, bytes], call: int
):
    with pytest.raises(Interrupted):
        convert(source, tmp_path / "out", "bf16", progress=interrupt_at(call), shard_bytes=SMALL)
    assert not (tmp_path / "out").exists()
    assert scratch_of(tmp_path / "out").exists() == (call > 2), "a working folder without shards is removed"
    done = convert(source, tmp_path / "out", "bf16", shard_bytes=SMALL)
    assert read_files(done.folder) == whole
    assert (done.resumed > 0) == (call > 2)
    assert not scratch_of(tmp_path / "out").exists()


KILLED_SCRIPT = """
import os, signal, sys
from pathlib import Path
from seektune.checkpoint.convert import convert
def progress(done, total):
    if done >= {share} * total:
        os.kill(os.getpid(), signal.SIGKILL)
convert(Path(sys.argv[1]), Path(sys.argv[2]), "bf16", progress=progress, shard_bytes={shard_bytes})
"""


@pytest.mark.parametrize(
    "shares",
    [
        (0.0, 0.4),
        pytest.param((0.15, 0.151, 0.2), marks=pytest.mark.slow),
        pytest.param((0.37, 0.7, 0.88, 0.99, 1.0), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_killed_conversion_resumes_with_same_bytes(
    source: Path, tmp_path: Path, whole: dict[str, bytes], shares: tuple[float, ...]
):
    """Repeated SIGKILL in the middle of a shard, each when the given share of all bytes is written."""
    out = tmp_path / "out"
    for share in shares:
        code = KILLED_SCRIPT.format(share=share, shard_bytes=SMALL)
        assert python(code, str(source), str(out)).returncode == -signal.SIGKILL
        assert not out.exists()
        left = scratch_of(out)
        assert left.is_dir()
        known = json.loads((left / RECORD).read_text())["shards"]
        assert {file.name for file in left.glob("*.safetensors")} == known.keys()
    done = convert(source, out, "bf16", shard_bytes=SMALL)
    assert done.resumed == len(known)
    assert read_files(out) == whole
    assert not scratch_of(out).exists()


@pytest.mark.parametrize(
    "damage", [lambda file: file.unlink(), lambda file: os.truncate(file, 100)], ids=["missing", "truncated"]
)
def test_damaged_shard_is_rewritten(
    source: Path, tmp_path: Path, whole: dict[str, bytes], damage: Callable[[Path], None]
):
    with pytest.raises(Interrupted):
        convert(source, tmp_path / "out", "bf16", progress=interrupt_at(200), shard_bytes=SMALL)
    left = scratch_of(tmp_path / "out")
    known = json.loads((left / RECORD).read_text())["shards"]
    damage(left / next(iter(known)))
    done = convert(source, tmp_path / "out", "bf16", shard_bytes=SMALL)
    assert done.resumed == len(known) - 1
    assert read_files(done.folder) == whole


@pytest.mark.parametrize("other", ["format", "source", "original", "shards"])
def test_unfinished_conversion_with_other_options_is_rejected(
    source: Path, tmp_path: Path, parity_folder: Path, other: str
):
    with pytest.raises(Interrupted):
        convert(source, tmp_path / "out", "bf16", progress=interrupt_at(200), shard_bytes=SMALL)
    before = read_files(scratch_of(tmp_path / "out"))
    if other == "source":
        os.utime(source / "config.json", (1, 1))
    with pytest.raises(ValueError, match="unfinished conversion with other options; remove it"):
        convert(
            source,
            tmp_path / "out",
            "fp32" if other == "format" else "bf16",
            parity_folder if other == "original" else None,
            shard_bytes=SMALL * 2 if other == "shards" else SMALL,
        )
    assert read_files(scratch_of(tmp_path / "out")) == before


def test_foreign_working_folder_is_not_touched(source: Path, tmp_path: Path):
    mine = scratch_of(tmp_path / "out")
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="exists and is not an unfinished conversion"):
        convert(source, tmp_path / "out", "bf16")
    assert read_files(mine) == {"thesis.txt": b"years"}


@pytest.mark.parametrize("holder", ["folder", "file", "another conversion", "a changed source"])
def test_occupied_destination_is_rejected_and_untouched(source: Path, tmp_path: Path, holder: str):
    out = tmp_path / "out"
    if holder == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("keep")
    elif holder == "file":
        out.write_text("keep")
    else:
        convert(source, out, "bf16")
        if holder == "a changed source":
            os.utime(source / "model-00001-of-00002.safetensors", (1, 1))
    before = read_files(out) if out.is_dir() else out.read_bytes()
    with pytest.raises(ValueError, match=r"out already exists and is not this conversion"):
        convert(source, out, "bf16" if holder == "a changed source" else "fp32")
    assert (read_files(out) if out.is_dir() else out.read_bytes()) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("shards", [[], {"model.safetensors": {}}, {"model.safetensors": 5}])
def test_damaged_record_is_ignored(source: Path, tmp_path: Path, shards):
    convert(source, tmp_path / "out", "bf16")
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    (tmp_path / "out" / RECORD).write_text(json.dumps({**record, "shards": shards}))
    with pytest.raises(ValueError, match="already exists and is not this conversion"):
        convert(source, tmp_path / "out", "bf16")


def test_damaged_result_is_not_reported_as_done(source: Path, tmp_path: Path):
    done = convert(source, tmp_path / "out", "bf16", shard_bytes=SMALL)
    next(done.folder.glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"was converted before, but model-.* is missing or truncated"):
        convert(source, tmp_path / "out", "bf16", shard_bytes=SMALL)


def test_concurrent_call_is_rejected(source: Path, tmp_path: Path):
    messages: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        if not messages:
            with pytest.raises(ValueError, match="another process is writing") as error:
                convert(source, tmp_path / "out", "bf16")
            messages.append(str(error.value))

    convert(source, tmp_path / "out", "bf16", progress=meanwhile)
    assert messages
    assert "\n" not in messages[0]
    assert raw(tmp_path / "out").keys() >= {"embed.weight", "head.weight"}


def test_result_of_faster_concurrent_call_is_not_overwritten(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both calls find no result at first; the slower one gets the lock after the faster one has finished."""
    out, finished = tmp_path / "out", module._finished

    def slow(final: Path, plan: dict) -> None:
        assert finished(final, plan) is None
        monkeypatch.setattr(module, "_finished", finished)
        convert(source, out, "bf16")

    monkeypatch.setattr(module, "_finished", slow)
    with pytest.raises(ValueError, match="already exists"):
        convert(source, out, "bf16")
    assert raw(out)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "source"]


def test_lock_file_of_dead_process_does_not_block(tmp_path: Path):
    final = tmp_path / "out"
    with resumable_dir(final, {"a": 1}) as work:
        work.record["shards"]["x"] = part = {"bytes": 1, "copied": [], "converted": [], "inexact": []}
        work.save_record()
    assert (scratch_of(final) / "lock").exists()
    with resumable_dir(final, {"a": 1}) as work:
        assert work.record["shards"] == {"x": part}


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (without("config.json"), r"config\.json does not exist"),
    "config that is not JSON": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not JSON"),
    "config of bytes": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), r"config\.json is not JSON"),
    "config that is a list": (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object"),
    "missing shard": (without("model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors is missing"),
    "empty shard": (
        lambda folder: (folder / "model-00002-of-00002.safetensors").write_bytes(b""),
        "model-00002-of-00002.safetensors is damaged",
    ),
    "no weights": (
        lambda folder: [file.unlink() for file in folder.glob("model*")],  # type: ignore[dict-item]
        "holds no weights",
    ),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS)
def test_faulty_source_is_rejected_before_writing(source: Path, tmp_path: Path, damage, message: str):
    damage(source)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "deep" / "out", "bf16")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_unknown_format_is_rejected_before_writing(source: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="'fp16' is unknown"):
        convert(source, tmp_path / "out", "fp16")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_source_as_destination_is_rejected(source: Path, tmp_path: Path):
    before = read_files(source)
    (tmp_path / "link").symlink_to(source)
    for same in (source, tmp_path / "link", source / ".." / "source"):
        with pytest.raises(ValueError, match="are the same folder"):
            convert(source, same, "released")
    with pytest.raises(ValueError, match="already exists"):
        convert(source, source.parent, "bf16")
    assert read_files(source) == before


def test_destination_inside_source_works(source: Path):
    with pytest.raises(Interrupted):
        convert(source, source / "bf16", "bf16", progress=interrupt_at(200), shard_bytes=SMALL)
    done = convert(source, source / "bf16", "bf16", shard_bytes=SMALL)
    assert done.resumed > 0
    assert convert(source, source / "bf16", "bf16", shard_bytes=SMALL).resumed == done.shards


def test_links_are_followed(source: Path, tmp_path: Path, whole: dict[str, bytes]):
    (tmp_path / "disk").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "disk" / "made")
    (tmp_path / "linked").symlink_to(tmp_path / "empty")
    (tmp_path / "parent").symlink_to(tmp_path / "disk")
    for link, real in (("dangling", "disk/made"), ("linked", "empty"), ("parent/inner", "disk/inner")):
        done = convert(source, tmp_path / link, "bf16", shard_bytes=SMALL)
        assert done.folder == tmp_path / real
        assert read_files(tmp_path / link) == whole
    assert (tmp_path / "linked").is_symlink()


def test_destination_below_file_is_rejected(source: Path, tmp_path: Path):
    (tmp_path / "file").write_text("keep")
    with pytest.raises(ValueError, match="file is a file"):
        convert(source, tmp_path / "file" / "deep" / "out", "bf16")


def test_mount_point_is_rejected(source: Path):
    with pytest.raises(ValueError, match="mount point"):
        convert(source, Path("/proc"), "bf16")


def test_empty_destination_is_replaced(source: Path, tmp_path: Path, whole: dict[str, bytes]):
    (tmp_path / "out").mkdir()
    assert read_files(convert(source, tmp_path / "out", "bf16", shard_bytes=SMALL).folder) == whole


def test_too_little_disk_space_is_rejected_before_writing(source: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"has 1\.00 kB free, but \d+\.\d\d [kM]B are needed"):
        convert(source, tmp_path / "out", "bf16")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_full_disk_keeps_complete_shards(source: Path, tmp_path: Path, whole: dict[str, bytes]):
    """RLIMIT_FSIZE makes the operating system refuse writes, as on a full disk."""
    sizes = [len(data) for name, data in sorted(whole.items()) if name.endswith(".safetensors")]
    limit = max(sizes) - 1
    assert sizes[0] <= limit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"File too large; [1-9][0-9]* of 1[0-9] shards") as error:
            convert(source, tmp_path / "out", "bf16", shard_bytes=SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.filename.endswith(".safetensors")
    assert not (tmp_path / "out").exists()
    assert not list(scratch_of(tmp_path / "out").glob("*.partial"))
    done = convert(source, tmp_path / "out", "bf16", shard_bytes=SMALL)
    assert 0 < done.resumed < done.shards
    assert read_files(done.folder) == whole


@pytest.mark.parametrize("call", range(0, 40, 4))
def test_full_disk_while_flushing_can_be_resumed(
    source: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, call: int
):
    flush, calls = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > call:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="No space left"):
        convert(source, tmp_path / "out", "bf16", shard_bytes=SMALL)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert read_files(convert(source, tmp_path / "out", "bf16", shard_bytes=SMALL).folder) == whole


MEASURE_SCRIPT = """
import sys
from pathlib import Path
from seektune.checkpoint.convert import convert
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
here = Path(sys.argv[1])
convert(here / "small", here / f"small-{sys.argv[2]}", sys.argv[2])
before = peak()
convert(here / "large", here / f"large-{sys.argv[2]}", sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("format", ["bf16", "fp32", pytest.param("released", marks=pytest.mark.slow)])
def test_conversion_memory_is_one_tensor(tmp_path: Path, format: str):
    """30 matrices of 8 MB, after 30 of 1 MB; memory holds one as read, one as written, and bands of it in fp32."""
    for folder, rows, count in (("small", 128, 30), ("large", 1024, 30)):
        (tmp_path / folder).mkdir()
        weights = {f"layers.{n}.attn.wq_b.weight": torch.full((rows, 4096), n + 1.0).bfloat16() for n in range(count)}
        save_file(weights, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text("{}")
    result = python(RETURN_MEMORY + MEASURE_SCRIPT, str(tmp_path), format)
    stored = {"bf16": 2, "fp32": 4, "released": 1}[format] * 1024 * 4096
    read = 2 * 1024 * 4096
    # encoding FP8 takes some copies of a band in fp32, 4 MB each
    bound = read + stored + {"bf16": 0, "fp32": 4, "released": 16}[format] * 2**20
    # the kernel adds up a process's pages in batches of up to 32 for each processor
    bound += 32 * resource.getpagesize() * (os.cpu_count() or 1)
    assert int(result.stdout) <= bound
    assert 30 * read > 8 * bound, "the bound is far below the size of the checkpoint"
