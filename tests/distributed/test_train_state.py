"""A checkpoint written by some ranks and read by others: every bit, each byte once, and failures known to all."""

import os
import resource
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from seektune.checkpoint import (
    Shard,
    as_shard,
    check_train_state,
    dcp,
    read_facts,
    read_tensors,
    tensor_names,
    write_train_state,
)
from tests.checkpoint.make_shards import make_shard, shard_state, split_stages

from .workers import WorkersFailed, run_workers

SLOW = pytest.mark.slow
Held = dict[str, Tensor | Shard]
Deal = tuple[bool, int]
"""Whether shards are uneven, and the dim that experts are split along."""


def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "model.embed.weight": torch.randn(37, 8).bfloat16(),
        "model.layers.0.ffn.experts.w1": torch.randn(8, 6, 4),
        "model.layers.0.ffn.gate.tid2eid": torch.randint(9, (5, 2)),
        "optimizer.embed.weight:step": torch.tensor(3.0),
        "optimizer.embed.weight:exp_avg": torch.randn(37, 8),
        "model.norm.weight": torch.randn(3),
    }


def is_random(name: str) -> bool:
    return name.startswith("random.")


def held(count: int, rank: int, odd: bool, expert_dim: int) -> Held:
    """The rank's shards of the state, and a tensor of its own."""
    return shard_state(state(), count, odd, expert_dim)[rank] | {
        f"random.{rank}": torch.full((4,), rank, dtype=torch.uint8)
    }


def save(folder: Path, deal: Deal) -> int:
    rank, count = dist.get_rank(), dist.get_world_size()
    return write_train_state(folder, held(count, rank, *deal), {"rank": rank}, dist.new_group(backend="gloo"))


def check_filled(folder: Path, before: Held, group: dist.ProcessGroup | None) -> None:
    into: Held = {name: empty_like(value) for name, value in before.items()}
    read_tensors(folder, into, group, optional=is_random)
    for name, value in before.items():
        assert torch.equal(as_shard(into[name]).tensor, as_shard(value).tensor), name


def empty_like(value: Tensor | Shard) -> Tensor | Shard:
    shard = as_shard(value)
    zeros = torch.zeros_like(shard.tensor)
    return zeros if isinstance(value, Tensor) else Shard(zeros, shard.shape, shard.offsets)


def load(folder: Path, deal: Deal) -> None:
    group = dist.new_group(backend="gloo")
    check_train_state(folder, group)
    before = held(dist.get_world_size(), dist.get_rank(), *deal)
    if f"random.{dist.get_rank()}" not in tensor_names(folder):
        before[f"random.{dist.get_rank()}"] = torch.zeros(4, dtype=torch.uint8)
    check_filled(folder, before, group)


@pytest.mark.parametrize(
    ("count", "deal"),
    [(4, (True, 1)), *(pytest.param(*case, marks=SLOW) for case in ((2, (True, 1)), (4, (False, 0)), (2, (False, 0))))],
)
def test_any_number_of_ranks_reads_what_any_other_wrote(tmp_path: Path, count: int, deal: Deal):
    folder = tmp_path / "step-1"
    sizes = run_workers(count, save, folder, deal)
    assert sizes == [sum(file.stat().st_size for file in folder.iterdir())] * count
    assert read_facts(folder) == {"rank": 0}
    check_train_state(folder)
    assert tensor_names(folder) == state().keys() | {f"random.{rank}" for rank in range(count)}
    check_filled(folder, dict(state()), None)
    run_workers(6 - count, load, folder, (not deal[0], 1 - deal[1]))


def test_what_one_process_wrote_is_read_by_many(tmp_path: Path):
    write_train_state(tmp_path / "step-1", state(), {})
    run_workers(4, load, tmp_path / "step-1", (True, 0))


def save_replicas_and_stages(folder: Path) -> None:
    """Two stages of a pipeline, each held by two ranks."""
    rank = dist.get_rank()
    write_train_state(folder, split_stages(state(), 2)[rank // 2], {}, dist.group.WORLD)


def test_replicas_are_written_once_and_by_more_than_one_rank(tmp_path: Path):
    folder = tmp_path / "step-1"
    run_workers(4, save_replicas_and_stages, folder)
    chunks = dcp.read_metadata(folder).state_dict_metadata
    assert all(len(entry.chunks) == 1 for entry in chunks.values())
    assert len({file.name[:11] for file in folder.glob("shard-*")}) == 4
    check_filled(folder, dict(state()), None)


def read_counted(folder: Path) -> int:
    read = 0
    process = dcp._StorageReader._process_read_request

    def counting(self: Any, file: Any, request: Any, planner: Any) -> None:
        nonlocal read
        read += request.lengths.numel()
        process(self, file, request, planner)

    dcp._StorageReader._process_read_request = counting
    read_tensors(folder, shard_state(state(), dist.get_world_size())[dist.get_rank()], dist.group.WORLD)
    return read


def test_a_rank_reads_only_what_it_holds(tmp_path: Path):
    write_train_state(tmp_path / "step-1", state(), {})
    needed = [sum(as_shard(x).tensor.numel() for x in rank.values()) for rank in shard_state(state(), 3)]
    assert run_workers(3, read_counted, tmp_path / "step-1") == needed


def test_large_pieces_go_to_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in ("shard", "dcp"):
        monkeypatch.setattr(f"seektune.checkpoint.{module}.FILE_BYTES", 200)
    large = {"model.w": torch.randn(41, 10), "model.small": torch.randn(3), "model.wide": torch.randn(2, 90)}
    write_train_state(tmp_path / "step-1", large, {})
    # five rows of w each, small beside its last row, and a row of wide that is too large for any file
    assert len(list((tmp_path / "step-1").glob("*.safetensors"))) == 9 + 2
    monkeypatch.undo()
    for held in shard_state(large, 3):
        check_filled(tmp_path / "step-1", held, None)


def refused(folder: Path, changed: str) -> str:
    """Rank 1 wants something else."""
    before: Held = dict(shard_state(state(), 2)[dist.get_rank()])
    if dist.get_rank() == 1:
        if changed == "name":
            before["model.new"] = torch.zeros(1)
        elif changed == "shape":
            before["model.norm.weight"] = make_shard(torch.zeros(4), 0, 2, 4)
    if changed == "fewer":
        del before["model.norm.weight"]
    with pytest.raises(ValueError, match="another model") as error:
        read_tensors(folder, before, dist.group.WORLD)
    return str(error.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("name", "model.new is not in the checkpoint"),
        ("shape", "model.norm.weight has shape [3] in it"),
        ("fewer", "model.norm.weight is only in the checkpoint"),
    ],
)
def test_another_model_is_refused_by_all_ranks(tmp_path: Path, changed: str, said: str):
    write_train_state(tmp_path / "step-1", state(), {})
    first, second = run_workers(2, refused, tmp_path / "step-1", changed)
    assert first == second
    assert first.endswith(said)


def test_names_of_other_ranks_are_known_to_be_wanted_without_asking_them(tmp_path: Path):
    write_train_state(tmp_path / "step-1", state(), {})
    part = {"model.norm.weight": torch.zeros(3)}
    read_tensors(tmp_path / "step-1", part, complete=set(state()))
    assert torch.equal(part["model.norm.weight"], state()["model.norm.weight"])
    with pytest.raises(ValueError, match="only in the checkpoint"):
        read_tensors(tmp_path / "step-1", part, complete=set(part))


def damaged(folder: Path) -> str:
    with pytest.raises(ValueError, match="is damaged") as error:
        check_train_state(folder, dist.group.WORLD)
    return str(error.value)


@SLOW
def test_damage_that_one_rank_finds_is_told_to_all(tmp_path: Path):
    run_workers(4, save, tmp_path / "step-1", (False, 0))
    file = sorted((tmp_path / "step-1").glob("shard-*"))[-1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    said = run_workers(3, damaged, tmp_path / "step-1")
    assert len(set(said)) == 1
    assert file.name in said[0]


def save_on_full_disk(folder: Path, full: int) -> str:
    large = {f"model.{dist.get_rank()}": torch.zeros(100_000)}
    if dist.get_rank() == full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match="too large") as error:
        write_train_state(folder, large, {}, dist.group.WORLD)
    return str(error.value)


@pytest.mark.parametrize("full", [pytest.param(0, marks=SLOW), 2])
def test_a_full_disk_of_one_rank_fails_all_and_leaves_what_was_there(tmp_path: Path, full: int):
    write_train_state(tmp_path / "step-1", state(), {"old": True})
    said = run_workers(3, save_on_full_disk, tmp_path / "step-1", full)
    assert len(set(said)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["step-1"]
    check_train_state(tmp_path / "step-1")
    assert read_facts(tmp_path / "step-1") == {"old": True}


def save_beside_training(folder: Path) -> float:
    group = dist.new_group(backend="gloo")
    before = held(2, dist.get_rank(), False, 0)
    thread = Thread(target=write_train_state, args=(folder, before, {}, group))
    total = torch.ones(1000)
    dist.all_reduce(total)
    thread.start()
    for _ in range(200):
        dist.all_reduce(total)
        total /= 2
    thread.join()
    return float(total.max())


def test_a_thread_saves_while_training_uses_other_groups(tmp_path: Path):
    assert run_workers(2, save_beside_training, tmp_path / "step-1") == [2.0, 2.0]
    check_train_state(tmp_path / "step-1")
    check_filled(tmp_path / "step-1", dict(state()), None)


def die_while_saving(folder: Path) -> None:
    if dist.get_rank() == 1:
        dcp._SavePlanner.lookup_object = lambda self, index: os._exit(1)
    write_train_state(folder, held(2, dist.get_rank(), False, 0), {}, dist.group.WORLD)


def test_the_death_of_a_rank_fails_the_others_at_once(tmp_path: Path):
    with pytest.raises(WorkersFailed, match=r"rank 0: (.*\n)+OSError: a process .* is gone"):
        run_workers(2, die_while_saving, tmp_path / "step-1")
    assert list(tmp_path.iterdir()) == []
