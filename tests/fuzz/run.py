"""Fuzz a target for some CPU minutes: `python -m tests.fuzz.run TARGET FOLDER --minutes 15 [--structured]`.

Bytes are mutated by atheris, guided by the coverage of this package (`pip install 'seektune[fuzz]'`); with
`--structured` documents are made by hypothesis. FOLDER receives the corpus, one file per kind of finding, and a line
in log.jsonl.
"""

import argparse
import json
import os
import re
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import process_time

import atheris

with atheris.instrument_imports(include=["seektune"]):
    from tests.fuzz.table import TARGETS
    from tests.fuzz.target import Read, Target

ROUND = 200
"""Inputs that hypothesis makes from one seed."""
LONGEST_INPUT = 16384
LIMITS = ("-timeout=20", "-rss_limit_mb=4096", "-verbosity=0", "-print_final_stats=0")
"""Of libFuzzer: seconds for one input, and memory of the process."""


@dataclass
class Session:
    """Counts inputs and keeps what they end in."""

    target: Target
    read: Read
    place: Path
    """The folder that is read from."""
    folder: Path
    tried: int = 0
    accepted: int = 0
    findings: dict[str, str] = field(default_factory=dict)

    def once(self, content: bytes) -> None:
        """Try one input."""
        self.tried += 1
        try:
            self.accepted += self.target.accepts(self.read, content, self.place)
        except Exception as error:
            self._keep(error, content)

    def _keep(self, error: Exception, content: bytes) -> None:
        cause = error.__context__ or error  # of a refusal that is not as it should be, where it was raised
        frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if "/seektune/" in frame.filename]
        place = f"{Path(frames[-1].filename).stem}-{frames[-1].lineno}" if frames else "fuzz"
        kind = f"{type(error).__name__}-{place}"
        if kind not in self.findings:
            self.findings[kind] = f"{type(error).__name__}: {error!s:.300}"
            (self.folder / f"finding-{self.target.name}-{kind}").write_bytes(content)

    def report(self, how: str) -> None:
        """Print the counts, and append them to the log."""
        line = {
            "target": self.target.name,
            "how": how,
            "cpu_minutes": round(process_time() / 60, 2),
            "inputs": self.tried,
            "accepted": self.accepted,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "findings": self.findings,
        }
        text = json.dumps(line, ensure_ascii=True)
        print(text, flush=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(text + "\n")


def fuzz_bytes(session: Session, ended: Callable[[], bool]) -> None:
    """Mutate bytes until it has ended; does not return."""
    corpus = session.folder / f"corpus-{session.target.name}"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(session.target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def once(content: bytes) -> None:
        session.once(content)
        if ended():
            session.report("bytes")
            os._exit(0)  # libFuzzer has no other way to end without an error

    words = session.folder / f"words-{session.target.name}"
    words.write_text(dictionary(session.target), encoding="utf-8")
    artifacts = f"-artifact_prefix={session.folder}/{session.target.name}-"
    atheris.Setup([sys.argv[0], str(corpus), *LIMITS, f"-dict={words}", f"-max_len={LONGEST_INPUT}", artifacts], once)
    atheris.Fuzz()


def dictionary(target: Target) -> str:
    """The words of a target's documents in libFuzzer's format."""
    words = {word for seed in target.seeds for word in re.findall(rb"[\w.-]{2,40}|[^\w\s]{1,4}", seed)}
    return "".join('"' + "".join(map("\\x{:02x}".format, word)) + '"\n' for word in sorted(words))


def fuzz_documents(session: Session, ended: Callable[[], bool]) -> None:
    """Make documents until it has ended."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from tests.fuzz.mutate import inputs

    @settings(
        max_examples=ROUND,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(session.target))
    def some(content: bytes) -> None:
        session.once(content)

    for number in count(int.from_bytes(os.urandom(4))):
        if ended():
            session.report("documents")
            return
        seed(number)(some)()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0, help="of CPU time (default 15)")
    parser.add_argument("--structured", action="store_true", help="documents of hypothesis instead of bytes")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    target = TARGETS[chosen.target]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        session = Session(target, target.open(Path(place)), Path(place), chosen.folder.resolve())
        until = process_time() + 60 * chosen.minutes
        run = fuzz_documents if chosen.structured else fuzz_bytes
        run(session, lambda: process_time() >= until)


if __name__ == "__main__":
    main()
