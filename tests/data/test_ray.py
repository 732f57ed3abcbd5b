"""Preparation on a real Ray cluster: two nodes on this machine, one of which is lost on the way."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from seektune.data.datasets.dataset import DataCache, EncodeSettings, RowEncoder
from seektune.data.datasets.synthetic import write_hellaswag
from seektune.data.example import Example
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.store import prepare as preparing
from seektune.data.store import shard
from seektune.data.store.prepare import prepare
from seektune.data.store.ray_cluster import ray_runner
from seektune.data.store.split import prepare_dataset
from seektune.recipe.recipe import Recipe
from tests.data.test_store import Counting, Numbers, files
from tests.forks import run_forked
from tests.run.few_steps import small_recipe, train_few

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Killing(RowEncoder):
    """As `Counting`, but the first process that encodes row 45 kills itself."""

    marker: Path
    identity: str = "counting 1"

    def encode(self, rows: Sequence[SourceRow]) -> list[list[Example] | BadRow]:
        if any(row.place == "numbers 45" for row in rows) and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Counting().encode(rows)


def prepare_on_cluster(folder: Path) -> None:
    """In a process of its own, as Ray leaves threads: prepare on two nodes, then meet a bad row."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    preparing.LEAST_ROWS = 20
    run = ray_runner(cluster.address)
    prepare(Numbers(130), Killing(folder / "killed"), folder / "b", "x", strict=False, run=run)
    with pytest.raises(ValueError, match=r"^numbers 49: 49 is refused$"):
        prepare(Numbers(130), Counting(), folder / "c", "x", run=run)
    (folder / "bad row named").touch()
    recipe = rows_recipe(folder)
    prepare_dataset(recipe.datasets[0], EncodeSettings(512), DataCache(folder / "d", print), run=run)


def rows_recipe(folder: Path) -> Recipe:
    """A recipe of the rows of a folder."""
    return small_recipe(folder, {"path": str(folder / "rows")})


def test_a_cluster_writes_the_same_bytes_though_a_worker_is_lost_and_trains_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(preparing, "LEAST_ROWS", 20)
    write_hellaswag(tmp_path / "rows", 50, 3)
    here = prepare(Numbers(130), Counting(), tmp_path / "a", "x", strict=False)
    assert run_forked(prepare_on_cluster, tmp_path) == 0
    assert (tmp_path / "killed").exists()
    assert files(here.folder) == files(tmp_path / "b" / "prepared" / here.folder.name)
    assert (tmp_path / "bad row named").exists()
    trained = train_few(rows_recipe(tmp_path), tmp_path / "here")
    monkeypatch.setattr(shard.ShardJob, "run", lambda self: pytest.fail("encoded again"))
    assert train_few(rows_recipe(tmp_path), tmp_path / "d") == trained
