"""Every rank reads its own shards of the released layout, and nothing else."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seektune.checkpoint import Shard, as_shard, files, load_weights
from seektune.checkpoint.load import FolderSource
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.checkpoint.make_shards import make_shard, shard_state, split_stages


@pytest.fixture(scope="module")
def whole(parity_folder: Path) -> dict[str, Tensor]:
    return dict(DeepseekV4ForCausalLM.from_pretrained(parity_folder).state_dict())


@pytest.fixture
def shapes(whole: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in whole.items()}


def overwritten(held: dict[str, Tensor | Shard]) -> dict[str, Tensor | Shard]:
    """The same shards, overwritten with a constant."""
    for value in held.values():
        tensor = as_shard(value).tensor
        tensor.fill_(7)
    return held


@pytest.fixture
def read_sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Records the bytes of every read of weights."""
    sizes: list[int] = []
    fill = files._fill

    def counting(wanted: memoryview, *others: object) -> None:
        sizes.append(len(wanted))
        fill(wanted, *others)

    monkeypatch.setattr(files, "_fill", counting)
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize(("count", "uneven", "expert_dim"), [(4, False, 0), (3, True, 0), (4, False, 1), (5, True, 1)])
def test_shards_load_values_of_the_whole(parity_folder, whole, count: int, uneven: bool, expert_dim: int):
    for before, held in zip(
        shard_state(whole, count, uneven, expert_dim), shard_state(whole, count, uneven, expert_dim), strict=True
    ):
        load_weights(overwritten(held), parity_folder)
        for name, value in held.items():
            assert torch.equal(as_shard(value).tensor, as_shard(before[name]).tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("expert_dim", [0, 1])
def test_each_of_four_ranks_reads_a_quarter(parity_folder, whole, read_sizes, expert_dim: int):
    held = shard_state(whole, 4, expert_dim=expert_dim)
    load_weights({name: value.tensor.new_empty(value.shape) for name, value in held[0].items()}, parity_folder)
    total = sum(read_sizes)
    for rank in held:
        read_sizes.clear()
        load_weights(rank, parity_folder)
        assert 0.24 * total < sum(read_sizes) < 0.26 * total


def test_loading_all_shards_reads_every_byte_once(parity_folder, whole, shapes, read_sizes):
    name = "layers.1.attn.wq_b.weight"
    for begin in range(0, 512, 128):
        load_weights({name: make_shard(whole[name], 0, begin, begin + 128)}, parity_folder, shapes)
    assert sum(read_sizes) == FolderSource(parity_folder).size(name) == 512 * 64 + 4


def test_shard_inside_a_block_of_scales(parity_folder, whole, shapes):
    name = "layers.1.attn.wq_b.weight"
    piece = Shard(torch.zeros(200, 5), (512, 64), (190, 30))
    load_weights({name: piece}, parity_folder, shapes)
    assert torch.equal(piece.tensor, whole[name][190:390, 30:35])


def test_pipeline_stage_loads_only_its_layers(parity_folder, whole, shapes, read_sizes):
    total = 0
    for stage in split_stages(whole, 3):
        before = {name: tensor.clone() for name, tensor in stage.items()}
        read_sizes.clear()
        load_weights(overwritten(dict(stage)), parity_folder, shapes)
        total += sum(read_sizes)
        assert all(torch.equal(stage[name], before[name]) for name in stage)
    source = FolderSource(parity_folder)
    assert total == sum(source.size(name) for name, _ in source.shapes())


def test_names_are_checked_against_whole_model(parity_folder, whole, shapes):
    stage = split_stages(whole, 3)[1]
    with pytest.raises(ValueError, match=r"holds .* which the model of its config\.json does not have"):
        load_weights(stage, parity_folder)
    with pytest.raises(ValueError, match=r"lacks layers\.9\.norm"):
        load_weights(stage, parity_folder, shapes | {"layers.9.norm": (3,)})


def test_damage_is_found_by_the_reading_rank(parity_folder, whole, shapes, tmp_path):
    name, folder = "norm.weight", tmp_path / "checkpoint"
    shutil.copytree(parity_folder, folder)
    source = FolderSource(folder).files
    with source._files[name].open("r+b") as file:
        file.seek(source._entries[name].start + 2 * 100)
        file.write(b"\xc0\x7f")
    load_weights({name: make_shard(whole[name], 0, 0, 100)}, folder, shapes)
    with pytest.raises(ValueError, match=r"norm\.weight in .* holds NaN or infinity"):
        load_weights({name: make_shard(whole[name], 0, 100, 128)}, folder, shapes)
