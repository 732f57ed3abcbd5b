"""Rates of the benchmark on a GPU replace assumed ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from seektune.planner.hardware import assumed, known_gpu, read_cluster
from seektune.planner.measured import with_measured
from seektune.planner.memory import first_ranks
from seektune.planner.time import step_time
from tests.places import FLASH

from .jobs import layout

H200 = known_gpu("h200-141gb", 128)


def write(folder: Path, tflops: object, gb_s: object, device: str = "NVIDIA H200", tiny: bool = False) -> Path:
    file = folder / "gpu.json"
    parts = {"products": {"found": {"layer": {"tflops": tflops}}}, "ceilings": {"found": {"elementwise_gb_s": gb_s}}}
    file.write_text(json.dumps({"device": device, "tiny": tiny, "parts": parts}))
    return file


def test_measured_rates_become_shares_of_the_peak(tmp_path: Path) -> None:
    cluster = with_measured(H200, write(tmp_path, 0.6 * H200.flops / 1e12, 0.8 * H200.memory_rate / 1e9))
    assert cluster.factors["matmul"] == pytest.approx(0.6)
    assert cluster.factors["memory"] == pytest.approx(0.8)
    assert cluster.factors["link"] == assumed()["link"]
    planned = layout(FLASH, 128)
    ranks = first_ranks(planned)
    expected = sum(step_time(planned, H200, ranks).arithmetic.values()) * assumed()["matmul"] / 0.6
    assert sum(step_time(planned, cluster, ranks).arithmetic.values()) == pytest.approx(expected)


def test_a_rate_above_the_peak_is_of_another_gpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"matmul is 2.00 times the peak of h200-141gb; measure on that GPU"):
        with_measured(H200, write(tmp_path, 2 * H200.flops / 1e12, 1000))


@pytest.mark.parametrize(
    ("device", "tiny", "message"),
    [
        ("cpu", False, "was measured on a CPU or at toy sizes"),
        ("NVIDIA H200", True, "was measured on a CPU or at toy sizes"),
        ("NVIDIA A100-SXM4-80GB", False, "was measured on NVIDIA A100-SXM4-80GB, not on h200-141gb"),
    ],
)
def test_a_result_of_another_device_is_refused(tmp_path: Path, device: str, tiny: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_measured(H200, write(tmp_path, 400, 3000, device, tiny))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold a JSON object, not a list"),
        ("", "is not JSON: Expecting value"),
        ("[" * 100_000, "is nested too deeply"),
        ("{}", "does not name the device; write it with python bench/gpu_all.py"),
        ('{"device": ["NVIDIA H200"]}', "does not name the device"),
        (
            '{"device": "NVIDIA H200", "parts": {"products": {"status": "failed"}}}',
            "has no rate of the part products; write it with python bench/gpu_all.py",
        ),
    ],
)
def test_what_is_not_such_a_result_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        with_measured(H200, file)


def test_a_result_that_is_missing_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gpu\.json does not exist"):
        with_measured(H200, tmp_path / "gpu.json")
    with pytest.raises(ValueError, match="is a folder, not a file"):
        with_measured(H200, tmp_path)


@pytest.mark.parametrize("rate", ["fast", "400", True, float("nan"), float("inf"), -1, 0, None, 10**400, [400]])
def test_a_rate_that_is_no_number_is_refused(rate: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no rate of the part ceilings"):
        with_measured(H200, write(tmp_path, 400, rate))


def test_a_rate_next_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"assumed: matmul must be from 0\.001 to 1, not 4\.9"):
        with_measured(H200, write(tmp_path, 5e-321, 3000))


def test_a_cluster_file_sets_assumptions(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("gpu: h200-141gb\ngpus: 128\nassumed: {matmul: 0.5, hidden: 0.3}\n")
    cluster = read_cluster(file)
    assert replace(cluster, assumed=()) == H200
    assert cluster.factors == {**assumed(), "matmul": 0.5, "hidden": 0.3}
    file.write_text("gpu: h200-141gb\ngpus: 128\nassumed: {matmull: 0.5}\n")
    with pytest.raises(ValueError, match="assumed: matmull is not one of matmul, memory"):
        read_cluster(file)
