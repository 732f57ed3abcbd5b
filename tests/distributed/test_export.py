"""An export from any layout is the export from one process, byte for byte; a failure is everyone's."""

import ctypes
import resource
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from seektune.checkpoint import Shard, as_shard, gather, save_weights
from seektune.checkpoint.formats import FORMATS
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import make_dims
from seektune.parallel.mesh import Mesh
from seektune.parallel.parallelize import parallelize
from tests.checkpoint.make_shards import shard_state, split_stages
from tests.checkpoint.reader import raw, read_files
from tests.conftest import DSPARK

from .workers import run_workers

KEPT = ("embed", "layers.2.", "norm", "head", "mtp.0.norm")
TRAINED = ("layers.2.ffn.experts.w2", "layers.2.attn.wq_b.weight", "head.weight")
LAYOUTS = {
    "one": 1,
    "replicas": 2,
    "stages": 2,
    "even": 4,
    "odd": 4,
    "rows of experts": 4,
    "stages of experts": 4,
}
"""And how many ranks each has."""


@pytest.fixture(scope="module")
def trained(parity_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state dict of a checkpoint, fewer layers, of which some tensors were trained a little."""
    whole = DeepseekV4ForCausalLM.from_pretrained(parity_folder, dtype=torch.bfloat16).state_dict()
    state = {name: tensor for name, tensor in whole.items() if name.startswith(KEPT)}
    for name in TRAINED:
        state[name][..., :3, 1:] *= 1.25
    file = tmp_path_factory.mktemp("trained") / "state.pt"
    torch.save(state, file)
    return file


def held(state: Mapping[str, Tensor], layout: str, rank: int) -> Mapping[str, Tensor | Shard]:
    count = LAYOUTS[layout]
    if layout in ("one", "replicas"):
        return state
    if layout == "stages":
        # the first layers on the last rank: the order must not follow the ranks
        return split_stages(state, count)[count - 1 - rank]
    if layout == "stages of experts":
        return shard_state(split_stages(state, 2)[rank // 2], 2)[rank % 2]
    return shard_state(state, count, uneven=layout == "odd", expert_dim=int(layout == "rows of experts"))[rank]


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def export(trained: Path, source: Path, folder: Path, layout: str, formats: list[str]) -> list[dict[str, Any]]:
    whole = torch.load(trained)
    mine = held(whole, layout, dist.get_rank())
    group = dist.new_group(backend="gloo")
    return [
        asdict(save_weights(mine, {"a": 1}, folder / format, format, source, 60_000, group, shapes(whole)))
        for format in formats
    ]


SLOW = pytest.mark.slow


@SLOW
@pytest.mark.parametrize(
    ("layout", "formats"), [("odd", list(FORMATS)), *((layout, ["released"]) for layout in LAYOUTS)]
)
def test_every_layout_exports_the_same_bytes(
    trained: Path, parity_folder: Path, tmp_path: Path, layout: str, formats: list[str]
):
    tallies = run_workers(LAYOUTS[layout], export, trained, parity_folder, tmp_path / "many", layout, formats)
    for index, format in enumerate(formats):
        alone = tmp_path / "alone" / format
        tally = save_weights(torch.load(trained), {"a": 1}, alone, format, parity_folder, 60_000)
        assert read_files(tmp_path / "many" / format) == read_files(alone)
        assert all(each[index] == asdict(tally) for each in tallies)
        assert format != "released" or 3 <= len(tally.converted) < 20
    assert sorted(file.name for file in (tmp_path / "many").iterdir()) == sorted(formats)


def export_failing(trained: Path, source: Path, folder: Path, layout: str, how: str) -> tuple[str, str]:
    whole = torch.load(trained)
    if how == "full disk" and dist.get_rank() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    if how == "not finite" and dist.get_rank() == 3:
        whole["layers.2.attn.wq_b.weight"].fill_(torch.inf)
    if how == "memory" and dist.get_rank() == 1:

        def failing(self: Any, slot: Any) -> Tensor:
            raise MemoryError("no room for it")

        gather._ShardedSource._local_tensor = failing
    try:
        mine = held(whole, layout, dist.get_rank())
        save_weights(mine, {}, folder, "released", source, group=dist.group.WORLD, complete=shapes(whole))
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


@SLOW
@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("full disk", "OSError", "too large"),
        ("not finite", "ValueError", "layers.2.attn.wq_b.weight: NaN or infinity"),
        ("memory", "RuntimeError", "rank 1: MemoryError: no room for it"),
        ("damaged", "ValueError", "model-00002-of-00002.safetensors is damaged or truncated"),
        ("taken", "ValueError", "already exists and is not empty"),
    ],
)
def test_a_failure_of_one_rank_is_raised_on_all(
    trained: Path, parity_folder: Path, tmp_path: Path, how: str, kind: str, said: str
):
    source, out = tmp_path / "source", tmp_path / "made" / "out"
    shutil.copytree(parity_folder, source)
    out.parent.mkdir()
    if how == "taken":
        out.mkdir()
        (out / "notes.txt").write_text("keep")
    if how == "damaged":
        file = source / "model-00002-of-00002.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    failed = run_workers(4, export_failing, trained, source, out, "odd", how)
    assert len(set(failed)) == 1
    assert failed[0][0] == kind
    assert said in failed[0][1]
    assert [file.name for file in out.parent.iterdir()] == (["out"] if how == "taken" else [])


LARGE = 32, 1024, 1024
M_MMAP_THRESHOLD = -3


def peak_beyond(folder: Path) -> int:
    """Bytes that this process needed at most beyond what it holds."""
    rank = dist.get_rank()
    half = LARGE[0] // 2
    mine = {"layers.0.ffn.experts.w1": Shard(torch.ones(half, *LARGE[1:]), LARGE, (half * rank, 0, 0))}
    # what is freed goes back at once; by default glibc keeps more the more it is given
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    # the mark so far is of imports, and pages of files come and go: it starts anew here
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    save_weights(mine, {}, folder, "fp32", group=dist.group.WORLD)
    return resident("VmHWM") - before


def resident(entry: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{entry}:")[1].split()[0]) * 1024


@SLOW
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_beyond_the_model_is_one_expert(tmp_path: Path):
    expert = 4 * LARGE[1] * LARGE[2]
    for beyond in run_workers(2, peak_beyond, tmp_path / "out"):
        # as it was received and as it is written, and what measuring shakes about
        assert beyond < 2 * expert + 20e6 < LARGE[0] / 2 * expert / 2


def test_pieces_must_make_up_the_whole(tmp_path: Path):
    half = as_shard(torch.zeros(4, 2)).tensor[:2]
    with pytest.raises(AssertionError, match="a part of"):
        save_weights({"norm.weight": Shard(half, (4, 2), (0, 0))}, {}, tmp_path / "out", "bf16")


def load_and_export(source: Path, folder: Path) -> None:
    config = DeepseekV4Config.from_pretrained(source)
    wanted = ParallelConfig(pp_size=2)
    mesh = Mesh.of(make_dims(wanted, dist.get_world_size(), config), torch.device("cpu"))
    model = parallelize(config, mesh, wanted, torch.float32)
    model.load_pretrained(source)
    model.carried = source
    model.save_pretrained(folder, "released", source)


@SLOW
def test_two_processes_carry_the_stages_of_a_drafter(toy_model, tmp_path: Path):
    model = toy_model(torch.float32, drafter=True, hidden_size=64, moe_intermediate_size=32, **DSPARK)
    model.save_pretrained(tmp_path / "base", format="released")
    run_workers(2, load_and_export, tmp_path / "base", tmp_path / "out")
    assert raw(tmp_path / "out") == raw(tmp_path / "base")
