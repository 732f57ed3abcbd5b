"""Preparation on a real Ray cluster: two nodes on this machine, one of which is lost on the way."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from seektune.data.datasets.dataset import RowEncoder
from seektune.data.example import Example
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.store import prepare as preparing
from seektune.data.store.prepare import prepare
from seektune.data.store.ray_cluster import ray_runner
from tests.data.test_store import Counting, Numbers, files

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


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address
    import ray

    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "LEAST_ROWS", 20)


def test_a_cluster_writes_the_same_bytes_though_a_worker_is_lost(address: str, tmp_path: Path) -> None:
    here = prepare(Numbers(130), Counting(), tmp_path / "a", "x", strict=False)
    marker = tmp_path / "killed"
    there = prepare(Numbers(130), Killing(marker), tmp_path / "b", "x", strict=False, run=ray_runner(address))
    assert marker.exists()
    assert files(here.folder) == files(there.folder)


def test_the_first_bad_row_is_named(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^numbers 49: 49 is refused$"):
        prepare(Numbers(130), Counting(), tmp_path, "x", run=ray_runner(address))
