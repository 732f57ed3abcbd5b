"""The command `report`: one run, several, and the live page in a browser."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from seektune.data.held_out_loss import HeldOutLoss
from seektune.train.config import LoggingConfig
from seektune.train.metrics import MetricsLog
from seektune.train.report_text import write_texts
from seektune.workflows import report as workflow
from seektune.workflows.live_report import LiveReport, make_server
from tests.run_cli import seektune
from tests.serve.test_page import browser, page
from tests.train.test_report import record_run, story
from tests.train.tiny_run import RECORD

__all__ = ["browser", "page"]


@pytest.fixture
def blank_figures() -> None:
    """Figures are looked at here."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder without steps."""
    place = tmp_path / "run"
    place.mkdir()
    (place / "recipe.yaml").write_text("seed: 0\noptimizer:\n  lr: 0.001\n", encoding="utf-8")
    write_texts(place, story([]))
    return place


@pytest.mark.slow
def test_a_finished_run_gets_its_report_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_run(folder, 2)
    with pytest.raises(ValueError, match="has not finished; --live shows its report"):
        workflow.report([folder], None)
    (folder / "report.html").write_text("old")
    workflow.report([folder], None)
    assert "2 steps" in (folder / "report.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {folder / 'report.html'}"


@pytest.mark.slow
def test_runs_are_compared_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    record_run(folder, 2)
    other = tmp_path / "other"
    other.mkdir()
    (other / "recipe.yaml").write_text("seed: 1\n", encoding="utf-8")
    record_run(other, 3)
    done = seektune("report", folder, other, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "comparison: comparison.html\n")
    text = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "optimizer.lr" in text
    again = seektune("report", folder, other, cwd=tmp_path)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is not a run folder: it has no recipe.yaml"),
        (["nowhere", "--live", "--out", "x.html"], "--live shows a page and writes none"),
        (["a", "b", "--live"], "--live shows one run"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    done = seektune("report", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@contextmanager
def served(folder: Path, refresh: int) -> Iterator[int]:
    with make_server(LiveReport(folder, refresh), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def asked(port: int, path: str = "/", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_live_page_answers_to_names_of_this_machine_only(folder: Path) -> None:
    with served(folder, 10) as port:
        assert asked(port)[0] == 200
        assert asked(port, host="localhost")[0] == 200
        assert asked(port, host=f"[::1]:{port}")[0] == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example"):
            assert asked(port, host=host) == (400, "Invalid host header: this server does not answer to that name")
        assert asked(port, "/recipe.yaml")[0] == 404
        with pytest.raises(OSError, match="choose another --port"):
            make_server(LiveReport(folder, 1), port)


@pytest.mark.slow
def test_the_page_follows_the_run_in_a_browser(folder: Path, page: Any) -> None:
    with served(folder, 1) as port, MetricsLog(folder, 4, LoggingConfig(to=(), every=100)) as log:
        page.goto(f"http://127.0.0.1:{port}/")
        assert "No step is finished yet" in page.text_content("p.lead")
        log.validation(0, HeldOutLoss(4.0))
        log.step(RECORD)
        page.wait_for_selector("text=1 steps, 40 tokens")
        log.evaluation(1, "quiz", [("acc", "25.0%")], {"acc": 0.25})
        log.samples(1, "samples", [{"prompt": "Hi <b>you</b>", "answer": "Yes.", "tokens": 2, "end": "stop"}])
        page.wait_for_selector("text=quiz during training")
        page.wait_for_selector("text=Hi <b>you</b>")
        assert page.locator("img").count() == 2
        assert page.locator("img").first.evaluate("image => image.complete && image.naturalWidth > 100")
        assert all(url.startswith((f"http://127.0.0.1:{port}/", "data:")) for url in page.asked)
