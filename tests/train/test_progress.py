from dataclasses import replace

from rich.console import Console

from seektune.train import progress
from seektune.train.progress import ProgressBar, ProgressLines, open_display
from tests.train.tiny_run import RECORD


def test_plain_lines_come_each_so_many_steps(capsys):
    lines = ProgressLines(steps=5, every=2, done=0)
    for step in range(1, 6):
        lines.step(replace(RECORD, step=step))
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in shown] == ["1/5", "2/5", "4/5", "5/5"]
    assert shown[1] == "step 2/5 · loss 1.5000 · norm 0.7 · lr 0.001 · 1,200 tokens/s · 2.5 GB · 0:01:30 left"


def test_a_pipe_gets_plain_lines(capsys):
    assert isinstance(open_display(3, 1), ProgressLines)


def test_a_terminal_gets_a_bar_with_all_numbers_even_if_narrow(monkeypatch):
    terminal = Console(force_terminal=True, width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    monkeypatch.setattr(progress, "Console", lambda: terminal)
    bar = ProgressBar(steps=4, done=0)
    bar.step(replace(RECORD, step=1))
    bar.say("[not markup]")
    bar.step(replace(RECORD, step=4))
    bar.close()
    shown = terminal.export_text()
    assert "4/4" in shown
    assert "loss 1.5000 · 1,200 tokens/s · 2.5 GB" in shown
    assert "[not markup]" in shown
