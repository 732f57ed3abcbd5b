"""A page of several runs: their curves, differences of recipes and scores."""

from dataclasses import replace
from pathlib import Path

import pytest

from seektune.train.comparison import ComparedRun, comparison_page, recipe_differences
from seektune.train.report_text import ReportText, read_texts, write_texts
from tests.train.test_report import EVALS, NASTY, record_run, story

from .reader import read


def run(place: Path, name: str, recipe: dict[str, object], texts: ReportText) -> ComparedRun:
    folder = place / name
    folder.mkdir()
    (folder / "recipe.yaml").write_text("seed: 0\n")
    record_run(folder, 3)
    write_texts(folder, texts)
    return ComparedRun.read(folder, name, recipe)


@pytest.mark.slow
def test_runs_are_compared_in_one_page(tmp_path: Path) -> None:
    first = run(tmp_path, "a", {"optimizer.lr": 1e-3, "seed": 0, "run_dir": "a"}, story())
    second = run(tmp_path, NASTY.replace("/", ""), {"optimizer.lr": 1e-4, "seed": 0, "run_dir": "b"}, story([]))
    reader = read(comparison_page([first, second]))
    words = " ".join(reader.words)
    for expected in ("2 runs compared", "4.0000 → 2.1250", "optimizer.lr", "0.001", "0.0001", "quiz acc", "30.0%"):
        assert expected in words
    assert "not taken" in words
    assert "seed" not in reader.words
    assert "script" not in reader.tags
    links = [value for name, value in reader.attributes if name in ("src", "href", "srcset")]
    assert len(links) == 2
    assert all(link.startswith("data:image/png;base64,") for link in links)


def test_only_keys_that_differ_are_listed(tmp_path: Path) -> None:
    first = run(tmp_path, "a", {"x": 1, "y": None, "same": [1]}, story([]))
    second = replace(first, recipe={"x": 2, "same": [1], "z": True})
    assert recipe_differences([first, second]) == [("x", "1", "2"), ("y", "null", "not set"), ("z", "not set", "True")]


def test_a_run_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished step of a run"):
        ComparedRun.read(tmp_path, "a", {})


def test_the_texts_of_a_report_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(story().recipe, encoding="utf-8")
    write_texts(tmp_path, story())
    found = read_texts(tmp_path)
    assert found == replace(story(), evals=[*EVALS])
    (tmp_path / "report.json").write_text('{"title": 1}')
    with pytest.raises(ValueError, match="is damaged"):
        read_texts(tmp_path)
    (tmp_path / "report.json").unlink()
    assert read_texts(tmp_path) == ReportText(tmp_path.name, [], story().recipe, [])
