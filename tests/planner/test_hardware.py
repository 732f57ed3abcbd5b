"""Known GPUs and cluster files."""

from dataclasses import replace
from pathlib import Path

import pytest

from seektune.planner.hardware import hardware_data, known_gpu, read_cluster
from seektune.planner.memory import first_ranks
from seektune.planner.report import make_report
from seektune.planner.time import step_time
from tests.places import FLASH

from .jobs import layout

GPU_TYPES = ("h100", "h200", "b200", "gb200", "a100", "mi300x", "mi355x", "rtx-pro-6000")


@pytest.mark.parametrize("kind", GPU_TYPES)
def test_gpu_type_is_known_with_its_sources(kind: str) -> None:
    name = next(name for name in hardware_data()["gpus"] if name.startswith(f"{kind}-"))
    each = hardware_data()["gpus"][name]
    assert each["read"]
    assert each["vendor"]
    cluster = known_gpu(name, 16)
    assert cluster.memory == each["memory_gb"] * 10**9
    # links within a node are faster than the network, and memory is faster than both
    assert cluster.network <= cluster.link < cluster.memory_rate


def test_assumptions_have_reasons() -> None:
    assert all(len(each["why"]) > 10 for each in hardware_data()["assumed"].values())


@pytest.mark.parametrize("name", hardware_data()["assumed"])
def test_assumed_value_outside_its_range_is_refused(tmp_path: Path, name: str) -> None:
    each = hardware_data()["assumed"][name]
    file = tmp_path / "cluster.yaml"
    text = "gpu: h100-80gb\ngpus: 8\nassumed: {%s: %s}\n"
    for value in (each["least"], each["value"], each["most"]):
        file.write_text(text % (name, value))
        assert read_cluster(file).factors[name] == value
    for value in (each["least"] - 1e-6, each["most"] * 1.001, ".nan", ".inf"):
        file.write_text(text % (name, value))
        with pytest.raises(ValueError, match=f"assumed(: {name} must be from|.{name} must be a finite number)"):
            read_cluster(file)


@pytest.mark.slow
def test_ends_of_each_range_plan_a_step() -> None:
    """Each alone: no divisor is 0, and no share leaves negative seconds."""
    planned = layout(FLASH, 128)
    ranks = first_ranks(planned)
    for name, each in hardware_data()["assumed"].items():
        for bound in ("least", "most"):
            cluster = replace(known_gpu("h100-80gb", 128), assumed=((name, each[bound]),))
            assert 0 < step_time(planned, cluster, ranks).mfu(cluster) < 1, (name, bound)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allocator", 0.5),
        ("context_gb", 9),
        ("context_gb", 0.1),
        ("context_least_gb", 0.1),
        ("nccl_mb", 900),
        ("nccl_least_mb", 1),
        ("skew", 4),
    ],
)
def test_assumptions_of_memory_change_the_plan(name: str, value: float) -> None:
    planned = layout(FLASH, 128)
    usual = make_report(planned, known_gpu("h100-80gb", 128)).firsts[0]
    found = make_report(planned, replace(known_gpu("h100-80gb", 128), assumed=((name, value),))).firsts[0]
    assert (usual.lower["total"], usual.upper["total"]) != (found.lower["total"], found.upper["total"])
    assert found.lower["total"] <= found.upper["total"]


def test_cluster_file_overrides_the_usual_node(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("gpu: h100-80gb\ngpus: 24\nmemory_gb: 79.6\nnetwork: hdr200\nlink: 300\n")
    cluster = read_cluster(file)
    assert (cluster.memory, cluster.network, cluster.link) == (79_600_000_000, 25e9, 300e9)
    assert (cluster.flops, cluster.nodes) == (989.4e12, 3)


def test_unknown_gpu_needs_all_rates(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    text = "gpu: mine\ngpus: 4\ngpus_per_node: 2\nmemory_gb: 32\nbf16_tflops: 100\nmemory_gb_s: 1000\nlink: pcie4\n"
    file.write_text(text)
    with pytest.raises(ValueError, match="another needs network in a cluster file"):
        read_cluster(file)
    file.write_text(text + "network: ethernet25\n")
    assert read_cluster(file).between(2) == 32e9
    assert read_cluster(file).between(4) == read_cluster(file).between(2, apart=2) == 3.125e9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu: h100\ngpus: 8\n", "did you mean h100-80gb"),
        ("gpu: h100-80gb\n", r"cluster.yaml: gpus is missing"),
        ("gpu: h100-80gb\ngpus: 8\nlinks: 1\n", "yaml:3: links is not a key of a cluster file; did you mean link?"),
        ("gpu: h100-80gb\ngpus: 8\nlink: nvlink9\n", "nvlink9 is not a known link"),
        ("gpu: [\n", "this is not YAML"),
        ("8\n", "holds a single value; a cluster file consists of keys and values"),
        ("gpu: mine\ngpus: 8\n", "mine is not a known GPU; known are"),
        ("gpu: h100-80gb\ngpus: 100000000000\n", "gpus must be at most 1000000"),
        ("gpu: h100-80gb\ngpus: 8\nmemory_gb: .inf\n", "memory_gb must be a finite number"),
        ("gpu: h100-80gb\ngpus: 8\nmemory_gb: .nan\n", "memory_gb must be a finite number"),
        (
            "gpu: h100-80gb\ngpus: 8\nnetwork: -1\n",
            "network: must be a known link, or a number of GB/s from 0.001 to 1e.09, not -1",
        ),
        ("gpu: h100-80gb\ngpus: 8\nassumed: {skew: abc}\n", "assumed.skew must be a finite number"),
        ("gpu: h100-80gb\ngpus: 8\nlink: .inf\n", "link: .inf is not a known link"),
        ("gpu: h100-80gb\ngpus: true\n", "gpus must be a whole number, not true"),
        ("gpu: h100-80gb\ngpus: '8'\n", "write 8 without quotes"),
        ("gpu: h100-80gb\ngpus: 8\ngpus: 16\n", "gpus is given twice"),
        ("gpu: h100-80gb\ngpus: 8\nnetwork: true\n", "network: must be a known link"),
        ("gpu: h100-80gb\ngpus: 8\nmemory_gb: 1e300\n", "memory_gb must be at most 1000000000"),
        ("gpu: h100-80gb\ngpus: 8\nmemory_gb: 1e-300\n", "memory_gb must be at least 0.001"),
        ("gpu: h100-80gb\ngpus: 8\nassumed: {skew: true}\n", "assumed.skew must be a finite number, not true"),
        (f"gpu: {'x' * 81}\ngpus: 8\n", "gpu is longer than any name of a GPU"),
    ],
)
def test_invalid_cluster_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_cluster(file)


def test_cluster_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"cluster\.yaml:1: this is not UTF-8 text"):
        read_cluster(file)


def test_too_many_gpus_are_refused() -> None:
    with pytest.raises(ValueError, match="100000000000 GPUs are more than any plan has; at most 1000000"):
        known_gpu("h100-80gb", 10**11)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1]\nlink: *a\ngpu: h100-80gb\n", "aliases .* are not supported"),
        ("gpu: " + "[" * 20 + "]" * 20, "nested more than 8 deep"),
        ("gpu: " + "[" * 100_000, "nested more than 8 deep"),
        ('gpu: "h100\\e[2J"\ngpus: 8\n', "or holds characters that none has"),
        ('gpu: "[/x]"\ngpus: 8\n', "or holds characters that none has"),
        ("gpu: h100-80gb\ngpus: 8\nlink: [" + "x" * 500 + "]\n", "must be a known link"),
    ],
)
def test_a_cluster_file_of_a_stranger_is_refused_in_a_line(tmp_path, text, message):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_cluster(file)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
