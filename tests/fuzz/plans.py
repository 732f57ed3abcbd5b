"""Targets: cluster files and measurements that plans read."""

from pathlib import Path

from seektune.planner.hardware import known_gpu, read_cluster
from seektune.planner.measured import RATES, with_measured
from tests.fuzz.target import Read, Target, as_json
from tests.fuzz.texts import as_yaml

WHOLE = {
    **{"gpu": "mine", "gpus": 16, "gpus_per_node": 8, "memory_gb": 80, "bf16_tflops": 989.4, "memory_gb_s": 3350},
    **{"link": "nvlink4", "network": 50, "assumed": {"matmul": 0.5, "ep_overlap": 0.8}},
}
MEASURED = {
    "device": "NVIDIA H200",
    "tiny": False,
    "parts": {
        "products": {"status": "done", "found": {"layer": {"tflops": 640.5}}},
        "ceilings": {"status": "done", "found": {"elementwise_gb_s": 4100}},
    },
}


def open_cluster(folder: Path) -> Read:
    file = folder / "cluster.yaml"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        cluster = read_cluster(file)
        assert min(cluster.gpus, cluster.memory, cluster.flops, cluster.memory_rate, cluster.between(2)) > 0

    return read


def open_measured(folder: Path) -> Read:
    file = folder / "measured.json"
    cluster = known_gpu("h200-141gb", 8)

    def read(content: bytes) -> None:
        file.write_bytes(content)
        factors = with_measured(cluster, file).factors
        assert all(0 < factors[name] <= 1 for name in RATES)

    return read


PLANS = (
    Target("cluster", open_cluster, (WHOLE, {"gpu": "h100-80gb", "gpus": 8}), as_yaml, words=("hdr200", "pcie4", "8")),
    Target("measured", open_measured, (MEASURED,), as_json, words=("cpu", 1e-320, 1e400)),
)
