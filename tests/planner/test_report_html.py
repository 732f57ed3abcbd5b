"""The HTML report: one file whose script computes the same numbers as Python for every panel setting."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from seektune.planner.formulas import BARS
from seektune.planner.hardware import known_gpu
from seektune.planner.memory import rank_memory
from seektune.planner.report import make_report
from seektune.planner.report_html import render_html
from tests.patience import HUNG
from tests.places import TINY, TINY_LORA

from .jobs import layout

SMALL = ("batch.global_size=64", "batch.length=200", "parallel.pp_size=2", "parallel.ep_size=2")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def dom_after_script(text: str, tmp_path: Path, asked: str) -> str:
    """The page's DOM after its script ran in a headless browser."""
    file = tmp_path / "plan.html"
    file.write_text(text, encoding="utf-8")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        profile,
        "--dump-dom",
        f"file://{file}#{asked}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=HUNG).stdout


def panel_results(dom: str) -> list[dict[str, float]]:
    found = re.search(r'<script id="answers" type="application/json">(.*?)</script>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    numbers: list[dict[str, float]] = json.loads(unescape(found[1]))
    return numbers


def test_page_needs_no_network_and_lists_assumptions() -> None:
    report = make_report(layout(TINY, 8, *SMALL), known_gpu("h100-80gb", 8))
    text = render_html(report)
    script = text[text.index("<script>") :]
    assert not re.search(r"\b(src|href)=|import\(|fetch\(", script)
    assert not re.search(r"@[A-Z]+@", text)
    for line in ("CPU runs only", "layers on one H200 took 1.4 to 3.2 times as long", "allocator"):
        assert line in text


def test_names_are_escaped_in_the_page() -> None:
    text = render_html(
        make_report(layout(TINY, 8, *SMALL), replace(known_gpu("h100-80gb", 8), gpu="<b>@DATA@</script>"))
    )
    assert "<h1>8 x &lt;b&gt;@DATA@&lt;/script&gt;</h1>" in text
    assert text.count("</script>") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "world", "words"),
    [
        ("", 8, ()),
        ("gpus=16&length=1000&recompute=block", 16, ("batch.length=1000", "parallel.recompute=block")),
        (
            "gpus=4&length=4096&recompute=selective&bound=lower",
            4,
            ("batch.length=4096", "parallel.recompute=selective"),
        ),
        # values that the panel does not offer are ignored; a row has at least one token
        ("gpus=999&length=-5&recompute=half&bound=nearly", 8, ("batch.length=1",)),
    ],
)
def test_panel_matches_python(tmp_path: Path, asked: str, world: int, words: tuple[str, ...]) -> None:
    text = render_html(make_report(layout(TINY, 8, *SMALL), known_gpu("h100-80gb", 8)))
    dom = dom_after_script(text, tmp_path, asked)
    expected = layout(TINY, world, *SMALL, *words)
    found = panel_results(dom)
    assert [each["rank"] for each in found] == list(range(world))
    for each in found:
        memory = rank_memory(expected, int(each["rank"]))
        numbers = memory.lower if "lower" in asked else memory.upper
        for name in (*BARS, "total"):
            assert each[name] == pytest.approx(numbers[name], rel=1e-12), name
    # a bar for each non-zero part, a rectangle for each action
    parts = sum(each[name] > 0 for each in found for name in BARS)
    assert len(re.findall('class="part"', dom)) == parts
    assert len(re.findall('class="span"', dom)) == 2 * 2 * layout(TINY, 8, *SMALL).micro_batches


@pytest.mark.slow
def test_panel_changes_the_lora_rank(tmp_path: Path) -> None:
    text = render_html(make_report(layout(TINY_LORA, 1), known_gpu("h100-80gb", 1)))
    found = panel_results(dom_after_script(text, tmp_path, "lora_rank=64"))
    numbers = rank_memory(layout(TINY_LORA, 1, "lora.rank=64"), 0).upper
    for name in ("fp32", "gradients", "moments", "total"):
        assert found[0][name] == pytest.approx(numbers[name], rel=1e-12), name
