"""What is printed of files cannot command the terminal, nor begin a line of its own."""

import pytest

from seektune.io.console import listed, say
from seektune.io.text import on_one_line
from seektune.train.progress import ProgressLines

EVIL = "evil\x1b[31m\u202e\nname"


def test_what_is_said_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"report: {EVIL}")
    ProgressLines(1, 1, 0).say(EVIL)
    assert capsys.readouterr().out == "report: evil\\x1b[31m\\u202e\nname\nevil\\x1b[31m\\u202e\nname\n"


def test_a_name_out_of_a_file_stays_on_its_line() -> None:
    assert on_one_line(EVIL) == "evil\\x1b[31m\\u202e\\nname"
    assert listed(["a", "x\ncomplete: every tensor"]) == "a, x\\ncomplete: every tensor"
