"""The tables of docs/performance.md are those of the last result on a GPU."""

import json

from bench.gpu.tables import tables
from tests.places import ROOT


def test_the_tables_of_a_gpu_are_those_of_its_result() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    made = tables(json.loads((ROOT / "bench" / "gpu.json").read_text(encoding="utf-8")))
    assert len(made) >= 2
    for table in made:
        assert table in page, f"put this table, from python bench/gpu_all.py --tables bench/gpu.json:\n{table}"
