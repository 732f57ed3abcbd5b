"""The benchmark of a GPU: whatever a part does, the others are measured, and each result is written at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu_all
from bench.gpu.compare import compared, lines
from bench.gpu.part import Bench, Part
from bench.gpu.runner import Outcome, run_parts
from bench.gpu.table import PARTS
from bench.gpu.tables import tables
from tests.places import ROOT

from .parts import dies, hangs, late, right, wrong

LONG = 60.0


def outcomes(*parts: Part, budget: float = 1000.0) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    run_parts(parts, Bench("cpu", tiny=True), budget, found.__setitem__)
    return found


def test_a_part_that_fails_dies_or_hangs_does_not_stop_the_others():
    ends = [("raises", wrong, LONG), ("dies", dies, LONG), ("hangs", hangs, 0.2)]
    parts = [
        Part("first", 1, right),
        *(Part(name, 1, work, limit) for name, work, limit in ends),
        Part("last", 1, right),
    ]
    found = outcomes(*parts)
    assert [found[part.name]["status"] for part in parts] == ["done", "failed", "failed", "failed", "done"]
    assert found["raises"]["error"] == "ArithmeticError: values differ"
    assert "in wrong" in found["raises"]["traceback"]
    assert found["dies"]["error"] == "its process ended with code 7"
    assert found["hangs"]["error"].startswith("killed after")
    assert found["last"]["found"]["before"] == ["first"], "only what was done is known to later parts"
    assert found["last"]["found"]["process"] != found["first"]["found"]["process"]


def test_a_part_whose_time_is_over_is_partial_and_its_numbers_count():
    found = outcomes(Part("late", 1, late), Part("next", 1, right))
    assert {**found["late"], "seconds": 0} == {"status": "partial", "seconds": 0, "found": {"first": 1.0}}
    assert found["next"]["found"]["before"] == ["late"]


def test_a_part_over_the_budget_is_skipped_and_a_shorter_one_still_runs():
    found = outcomes(Part("long", 500, right), Part("short", 1, right), budget=100)
    assert found["long"] == {"status": "skipped", "seconds": 0.0, "reason": "needs about 500 s; 100 s of 100 were left"}
    assert found["short"]["status"] == "done"


def test_parts_have_names_of_their_own_and_the_first_fit_the_budget():
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    assert sum(part.seconds for part in PARTS) < 400


def result(**found: object) -> dict[str, object]:
    parts = {name: {"status": "done", "seconds": 1.0, "found": each} for name, each in found.items()}
    return {"parts": {**parts, "skipped": {"status": "skipped", "reason": "late"}}}


def test_numbers_are_compared_by_their_path():
    before = result(a={"x": {"ms": 2.0}, "y": 5, "gone": 1}, b=[1.0, 4.0])
    now = result(a={"x": {"ms": 1.0}, "y": 5.1, "fresh": 1}, b=[1.0, 8.0])
    changes = compared(now, before)
    assert list(lines(changes)) == ["a / x / ms: 2 -> 1 (0.50x)", "b / 1: 4 -> 8 (2.00x)"]


def test_a_table_without_numbers_is_left_out():
    assert tables(result()) == []


def test_layers_without_a_peak_of_memory_or_a_ceiling_have_empty_cells():
    """As those of a CPU."""
    row = {"ms": 1.5, "tflops": 3.0, "share_of_matmul": None, "peak_gb": None}
    assert tables(result(**{"layers, packed, 4096": {"CSA": row}}))[0].endswith("| CSA | 4,096 | 1.5 | 3 |  |  |")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device=cuda"], "there is no CUDA device; --device cpu --tiny"),
        (["--tables=missing.json"], "missing.json is not a result of this benchmark: "),
        (["--against=other.json", "--device=cpu"], "other.json is not a result of this benchmark: 'parts'"),
        (["--budget=-1"], "-1 is not above 0"),
        (["--device=cpu", "--out=missing/gpu.json"], "the folder missing does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_all.py", *words])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu_all.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_flow_runs_at_toy_sizes_without_pydantic(tmp_path: Path):
    """A machine for GPUs has torch and Triton; kernels are interpreted here."""
    pytest.importorskip("triton")
    path = os.pathsep.join([str(ROOT / "bench" / "gpu" / "stand_in"), str(ROOT)])
    settings = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # another process: the interpreter and the stand-in are chosen when modules are imported
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "bench" / "gpu_all.py"), "--device=cpu", "--tiny", f"--out={out}"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    parts = json.loads(out.read_text(encoding="utf-8"))["parts"]
    assert {name: part.get("error") for name, part in parts.items() if part["status"] != "done"} == {}
    assert list(parts) == [part.name for part in PARTS]
