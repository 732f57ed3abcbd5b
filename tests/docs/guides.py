"""README.md and docs/: their shell blocks as commands, and which of them need what hardware."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from seektune import cli
from tests.places import ROOT
from tests.run_cli import seektune, without_room

RECIPES = "examples/llm_finetune/deepseek_v4"
FLASH, TINY = (f"{RECIPES}/deepseek_v4_{name}_hellaswag.yaml" for name in ("flash", "tiny"))
CONSOLE_SCRIPTS = {"seektune": cli.app, "automodel": cli.automodel_app}
PAGES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"# hardware: (.+)")
"""A comment above commands that need what no test has. It holds until an empty line or another comment."""
_BLOCK = re.compile(r"^```(?:sh|bash|shell|console|zsh)\b[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command as a page shows it."""

    page: str
    line: str
    hardware: str = ""
    """What it needs, where no test can have that."""

    @property
    def words(self) -> tuple[str, ...]:
        """Words with the page's placeholders filled in; comments, redirections and `uv run` left out."""
        line = re.sub(r"(?<=\s)>\s*\S+", "", self.line)
        for placeholder, value in {
            "runs/NAME/model": "trained",
            "runs/mine/model": "trained",
            "=R ": "=15 ",
        }.items():
            line = line.replace(placeholder, value)
        words = shlex.split(line, comments=True)
        words = words[2:] if words[:2] == ["uv", "run"] else words
        dry = "--dry-run" in words or words[:2] == ["seektune", "plan"]
        return tuple((FLASH if dry else TINY) if word == "RECIPE" else word for word in words)


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def commands(page: str) -> tuple[Command, ...]:
    """All commands of a page's shell blocks, in order."""
    found = []
    for block in _BLOCK.findall(text_of(page)):
        hardware = ""
        for line in block.replace("\\\n", " ").splitlines():
            mark = MARK.fullmatch(line.strip())
            if mark or line.strip().startswith("#") or not line.strip():
                hardware = mark[1] if mark else ""
                continue
            found.append(Command(page, line.strip(), hardware))
    return tuple(found)


def blocks(page: str, language: str) -> list[str]:
    """The page's blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def own_test(page: str) -> Path:
    """Where a page of docs/ has a test module of its own, that is the file."""
    return ROOT / "tests" / "docs" / f"test_{Path(page).stem.replace('-', '_')}.py"


def printed(command: Command, place: Path, training: Sequence[str] = ()) -> str:
    """What a command of a page prints, run in `place` without an error; `training` are further words of a training."""
    door, *words = command.words
    assert door == "seektune"
    words += training if words[0] == "train" else ()
    done = seektune(*words, cwd=place, XDG_CACHE_HOME=str(place / "cache"))
    assert (done.returncode, without_room(done.stderr)) == (0, ""), command.line
    return done.stdout
