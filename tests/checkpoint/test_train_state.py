"""Checkpoints of a training run, and the atomic folders that hold them."""

import itertools
import os
import pickle
import shutil
import signal

import pytest
import torch

from seektune.checkpoint import (
    check_train_state,
    clean_up_partial,
    complete_folder,
    read_facts,
    read_tensors,
    tensor_names,
    write_train_state,
)

TENSORS = {
    "model.a": torch.arange(24, dtype=torch.float32).view(4, 6),
    "model.table": torch.arange(5),
    "optimizer.a:step": torch.tensor(3.0),
    "optimizer.a:master": torch.randn(3, 2),
    "model.half": torch.randn(7).bfloat16(),
    "model.turned": torch.arange(6.0).view(2, 3).T,
    "random.cpu": torch.get_rng_state(),
}


def test_round_trip_is_bitwise_exact(tmp_path):
    size = write_train_state(tmp_path / "step-1", TENSORS, {"step": 1, "stream": {"epoch": 0}})
    check_train_state(tmp_path / "step-1")
    assert size == sum(file.stat().st_size for file in (tmp_path / "step-1").iterdir())
    assert read_facts(tmp_path / "step-1") == {"step": 1, "stream": {"epoch": 0}}
    assert tensor_names(tmp_path / "step-1") == TENSORS.keys()
    into = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    read_tensors(tmp_path / "step-1", into)
    for name, tensor in TENSORS.items():
        assert torch.equal(into[name], tensor), name
        assert into[name].dtype == tensor.dtype, name


def test_reading_unpickles_nothing(tmp_path, monkeypatch):
    write_train_state(tmp_path / "step-1", TENSORS, {})

    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    check_train_state(tmp_path / "step-1")
    read_tensors(tmp_path / "step-1", {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()})
    assert not any(b"\x80\x04\x95" in file.read_bytes()[:4096] for file in (tmp_path / "step-1").iterdir())


def test_other_model_is_rejected(tmp_path):
    write_train_state(tmp_path / "step-1", TENSORS, {})
    into = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    with pytest.raises(ValueError, match=r"model.new is not in the checkpoint"):
        read_tensors(tmp_path / "step-1", {**into, "model.new": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"model\.a has shape \[4, 6\] in it"):
        read_tensors(tmp_path / "step-1", {**into, "model.a": torch.zeros(4, 7)})


def test_newer_checkpoint_replaces_older(tmp_path):
    for step in (1, 2):
        write_train_state(tmp_path / "step-1", TENSORS, {"step": step})
    assert read_facts(tmp_path / "step-1") == {"step": 2}
    assert [place.name for place in tmp_path.iterdir()] == ["step-1"]


def test_failed_write_keeps_older_checkpoint(tmp_path, monkeypatch):
    write_train_state(tmp_path / "step-1", TENSORS, {"step": 1})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_train_state(tmp_path / "step-1", TENSORS, {"step": 2})
    monkeypatch.undo()
    check_train_state(tmp_path / "step-1")
    assert read_facts(tmp_path / "step-1") == {"step": 1}
    assert [place.name for place in tmp_path.iterdir()] == ["step-1"]


@pytest.mark.parametrize("with_successor", [True, False])
def test_interrupted_replacement_is_restored(tmp_path, with_successor):
    """The process died after moving the old folder aside and before renaming the new one."""
    (tmp_path / ".step-1.old").mkdir()
    (tmp_path / ".step-1.old" / "which").write_text("old")
    (tmp_path / ".step-1.abc.partial").mkdir()
    if with_successor:
        (tmp_path / "step-1").mkdir()
        (tmp_path / "step-1" / "which").write_text("new")
    clean_up_partial(tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == ["step-1"]
    assert (tmp_path / "step-1" / "which").read_text() == ("new" if with_successor else "old")


def killed_while(work):
    """Run `work` in a forked process, which SIGKILLs itself when it calls `die`; returns whether it was killed."""
    child = os.fork()
    if child == 0:
        work(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def write(folder, text, die=None):
    with complete_folder(folder, replace=True) as scratch:
        (scratch / "which").write_text(text)
        if die is not None:
            die()


def test_scratch_of_killed_process_is_removed_but_not_of_living_one(tmp_path):
    folder = tmp_path / "model[1]"
    assert killed_while(lambda die: write(folder, "dead", die))
    (dead,) = tmp_path.iterdir()
    with complete_folder(folder) as living:
        assert not dead.exists()
        write(folder, "new")
        assert living.exists()
        (folder / "which").unlink()
    assert [place.name for place in tmp_path.iterdir()] == ["model[1]"]


@pytest.mark.slow
def test_replacement_killed_at_any_call_can_be_repeated(tmp_path):
    folder, aside, seen = tmp_path / "model", tmp_path / ".model.old" / "which", []
    for count in itertools.count():
        write(folder, "old")

        def work(die, count=count):
            calls = itertools.count()

            def counted(real):
                return lambda *names, **options: die() if next(calls) == count else real(*names, **options)

            os.rename, os.fsync, shutil.rmtree = map(counted, (os.rename, os.fsync, shutil.rmtree))
            write(folder, "new")

        if not killed_while(work):
            break
        seen.append((folder / "which").read_text() if folder.exists() else f"aside: {aside.read_text()}")
        write(folder, "newest")
        assert (folder / "which").read_text() == "newest"
        assert [place.name for place in tmp_path.iterdir()] == ["model"]
    assert list(dict.fromkeys(seen)) == ["old", "aside: old", "new"]


def test_link_survives_replacement(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    for text in ("old", "new", "newest"):
        write(tmp_path / "model", text)
        assert (tmp_path / "disk" / "model" / "which").read_text() == text
    assert (tmp_path / "model").is_symlink()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["disk", "model"]


def fail_midway(folder):
    with complete_folder(folder) as scratch:
        (scratch / "part").write_text("x")
        assert not folder.exists()
        raise RuntimeError("half way")


def test_folder_is_complete_or_absent(tmp_path):
    with pytest.raises(RuntimeError, match="half way"):
        fail_midway(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    with complete_folder(tmp_path / "model") as scratch:
        (scratch / "part").write_text("x")
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["part"]
    with pytest.raises(ValueError, match="not empty"), complete_folder(tmp_path / "model"):
        pass


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ('{"state.json": {"bytes": 2}}', "manifest.json is damaged: it lacks a size or a checksum"),
        ('{"state.json": 5}', "manifest.json is damaged: it lacks a size or a checksum"),
        ('{"state.json": {"bytes": [], "sha256": ""}}', "manifest.json is damaged: it lacks a size or a checksum"),
        ('{"a": ' * 100_000, "manifest.json is damaged: it is not JSON"),
        ('{"../secret": {"bytes": 2, "sha256": ""}, "state.json": {"bytes": 2, "sha256": ""}}', "secret is missing"),
        ("{}", "state.json does not belong"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_damaged_manifest_is_reported(tmp_path, manifest, message):
    (tmp_path / "secret").write_text("no")
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match=message):
        check_train_state(folder)


def test_checkpoint_without_facts_is_rejected(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"state\.json is missing"):
        check_train_state(tmp_path)


def test_clean_up_partial_of_one_name(tmp_path):
    for name in (".model.abc.partial", ".other.abc.partial", ".other.old"):
        (tmp_path / name).mkdir()
    clean_up_partial(tmp_path, "model")
    assert sorted(place.name for place in tmp_path.iterdir()) == [".other.abc.partial", ".other.old"]
