"""What job files have in common: the command, its nodes, its environment, and checks of text that goes into them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import normpath
from pathlib import PurePosixPath

from seektune.io.secrets import is_secret, is_secret_name

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HEADER = re.compile(r"[A-Za-z0-9_.,:/=+@%&|*\[\]()-]+")
"""Text that #SBATCH lines accept without quoting."""
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")
"""A Kubernetes name (RFC 1123), short enough for the suffixes that controllers append."""


ASSIGNMENT = re.compile(r"(?<![\w-])([A-Za-z_]\w*)=(\S*)")
"""A variable and its value in a line of shell."""


@dataclass(frozen=True)
class Environment:
    """Environment variables of a job: passed on by name, or written to the file with a value."""

    names: tuple[str, ...] = ()
    values: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, words: Sequence[str]) -> "Environment":
        """Parse NAME and NAME=VALUE.

        Raises:
            ValueError: an invalid name, a name given twice, or a value that looks like a secret.
        """
        names: list[str] = []
        values: list[tuple[str, str]] = []
        for word in words:
            name, equals, value = word.partition("=")
            if not NAME.fullmatch(name):
                raise ValueError(f"--env {_shown(name)} must be NAME or NAME=VALUE")
            if name in (*names, *dict(values)):
                raise ValueError(f"--env {name} is given twice")
            if not equals:
                names.append(name)
                continue
            if is_secret_name(name, value) or is_secret(value):
                raise ValueError(
                    f"--env {name}=... looks like a secret, which must not be in a file; pass it by name: --env {name}"
                )
            values.append((name, one_line("--env", value)))
        return cls(tuple(names), tuple(values))

    def with_defaults(self, defaults: Mapping[str, str]) -> dict[str, str]:
        """The values to write: the defaults and the job's own, without variables that are passed by name."""
        return {name: value for name, value in {**defaults, **dict(self.values)}.items() if name not in self.names}


@dataclass(frozen=True)
class JobSpec:
    """A training job that a cluster's scheduler will start."""

    recipe: str
    overrides: tuple[str, ...]
    nodes: int
    gpus: int
    """GPUs per node, with one process each."""
    name: str
    environment: Environment = Environment()
    run_dir: str | None = None
    """The run's folder, if the recipe or an override sets it."""
    seconds: int = 600
    """Seconds between the signal to stop and the kill."""

    def __post_init__(self) -> None:
        for word in (self.recipe, *self.overrides):
            one_line("a word of the command", word)

    @property
    def grace(self) -> int:
        """Seconds of these that workers have to save; the rest is for the launcher and the scheduler."""
        return max(self.seconds - 30, self.seconds // 2, 1)

    def command(self, program: Sequence[str], folder: str) -> list[str]:
        """The command of every node, without its rank and endpoint; `folder` is the default of `--run_dir`."""
        words = [*program, "train", self.recipe, *self.overrides, f"--nproc-per-node={self.gpus}"]
        words.append(f"--shutdown-timeout={self.grace}")
        return [*words, f"--run_dir={folder}"] if self.run_dir is None else words

    def check_storage(self, mount: str) -> None:
        """Check that the run's folder is below the only folder that outlives a node and that all nodes share.

        Raises:
            ValueError: it is elsewhere.
        """
        if self.run_dir is not None and PurePosixPath(mount) not in PurePosixPath(normpath(self.run_dir)).parents:
            raise ValueError(
                f"run_dir {_shown(self.run_dir)} is not below {mount}: checkpoints would be lost with the node; "
                f"leave run_dir out, or set --run_dir={mount}/{self.name}"
            )


def one_line(what: str, text: str) -> str:
    """Check that a text is one line of printable characters, and return it.

    Raises:
        ValueError: it is not, or it looks like a secret.
    """
    if not text.isprintable():
        raise ValueError(f"{what} must be one line of printable characters, not {_shown(text)}")
    if is_secret(text):
        key = text.partition("=")[0] if text.startswith("--") else what
        raise ValueError(f"{key} looks like a secret, which must not be in a file; set a variable and give --env NAME")
    return text


def setup_line(text: str) -> str:
    """Check a line of --setup, and return it.

    Raises:
        ValueError: it is not one line of printable characters, or it sets a variable that looks like a secret.
    """
    for match in ASSIGNMENT.finditer(text):
        name, value = match.groups()
        if is_secret_name(name, value.strip("\"'")) and not value.startswith("$"):
            raise ValueError(
                f"--setup sets {name}, which looks like a secret, which must not be in a file; give --env {name}"
            )
    return one_line("--setup", text)


def header(what: str, text: str) -> str:
    """Check that a text needs no quoting in a #SBATCH line, and return it.

    Raises:
        ValueError: it has a space, a quote or another character that would need quoting, or looks like a secret.
    """
    if not HEADER.fullmatch(text):
        raise ValueError(f"{what} {_shown(text)}: a #SBATCH line accepts letters, digits and ._-,:/=+@%&|*[]() only")
    return one_line(what, text)


def label(text: str) -> str:
    """Any text as a name that Kubernetes and SkyPilot accept."""
    made = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50].strip("-")
    return made if made[:1].isalpha() else f"run-{made}".strip("-")


def checked_label(what: str, text: str) -> str:
    """Check that a text is a name that Kubernetes and SkyPilot accept, and return it.

    Raises:
        ValueError: it is not.
    """
    if not LABEL.fullmatch(text):
        raise ValueError(f"{what} {_shown(text)} must have only lowercase letters, digits and -, at most 50 characters")
    return text


def _shown(text: str) -> str:
    return repr(text[:80])
