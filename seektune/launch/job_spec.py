"""What written jobs have in common: who trains what on how many nodes, and words that are safe in files of others."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|_KEY$|^KEY$", re.IGNORECASE)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HEADER = re.compile(r"[A-Za-z0-9_.,:/=+@%&|*\[\]()-]+")
"""What Slurm's header lines take without any quoting."""
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")
"""A name for Kubernetes (RFC 1123), short enough for what its controllers append."""


@dataclass(frozen=True)
class Environment:
    """Variables of a job: some are handed on by name, some have a value that is written down."""

    names: tuple[str, ...] = ()
    values: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, words: Sequence[str]) -> "Environment":
        """From NAME and NAME=VALUE.

        Raises:
            ValueError: no name, a name that is there twice, or a value that looks like a secret.
        """
        names: list[str] = []
        values: list[tuple[str, str]] = []
        for word in words:
            name, equals, value = word.partition("=")
            if not NAME.fullmatch(name):
                raise ValueError(f"--env {_shown(name)} must be NAME or NAME=VALUE")
            if name in (*names, *dict(values)):
                raise ValueError(f"--env {name} is there twice")
            if not equals:
                names.append(name)
                continue
            if SECRET.search(name):
                raise ValueError(
                    f"--env {name}=... looks like a secret, which no file should hold; name it: --env {name}"
                )
            values.append((name, one_line("--env", value)))
        return cls(tuple(names), tuple(values))

    def over(self, usual: Mapping[str, str]) -> dict[str, str]:
        """Values that are written down: the usual ones, unless the job names another or has it handed on."""
        return {name: value for name, value in {**usual, **dict(self.values)}.items() if name not in self.names}


@dataclass(frozen=True)
class JobSpec:
    """A training job that some other program will start."""

    recipe: str
    overrides: tuple[str, ...]
    nodes: int
    gpus: int
    """Of each node, and so its processes."""
    name: str
    environment: Environment = Environment()
    has_run_dir: bool = False
    """Whether recipe or overrides name the run's folder."""
    seconds: int = 600
    """Between the request to stop and the end."""

    def __post_init__(self) -> None:
        for word in (self.recipe, *self.overrides):
            one_line("a word of the command", word)

    @property
    def saving(self) -> int:
        """Seconds of these that workers have; the launcher and the scheduler take the rest."""
        return max(self.seconds - 30, self.seconds // 2, 1)

    def command(self, door: Sequence[str], folder: str) -> list[str]:
        """The words that every node runs, but for its place; `folder` is where the run goes unless it has a place."""
        words = [*door, "train", self.recipe, *self.overrides, f"--nproc-per-node={self.gpus}"]
        words.append(f"--shutdown-timeout={self.saving}")
        return words if self.has_run_dir else [*words, f"--run_dir={folder}"]


def one_line(what: str, text: str) -> str:
    """The text, if it is one line of printable signs.

    Raises:
        ValueError: it is not.
    """
    if not text.isprintable():
        raise ValueError(f"{what} must be one line of printable signs, not {_shown(text)}")
    return text


def header(what: str, text: str) -> str:
    """The text, if Slurm's header takes it as it is.

    Raises:
        ValueError: it has a space, quote or another sign that would need quoting.
    """
    if not HEADER.fullmatch(text):
        raise ValueError(f"{what} {_shown(text)}: a #SBATCH line takes letters, digits and ._-,:/=+@%&|*[]() only")
    return text


def label(text: str) -> str:
    """A name that Kubernetes and SkyPilot take, made of any text."""
    made = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50].strip("-")
    return made if made[:1].isalpha() else f"run-{made}".strip("-")


def checked_label(what: str, text: str) -> str:
    """The text, if it is such a name.

    Raises:
        ValueError: it is not.
    """
    if not LABEL.fullmatch(text):
        raise ValueError(f"{what} {_shown(text)} must be small letters, digits and - only, at most 50")
    return text


def _shown(text: str) -> str:
    return repr(text[:80])
