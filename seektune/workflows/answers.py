"""A file of answers that grows; the same job begun again goes on where it was broken off."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def answers(out: Path, job: str, samples: int) -> Iterator[tuple[TextIO, int]]:
    """The file, open for more lines, and how many prompts are answered in it already: 0 unless by the same `job`.

    Beside it stands a file `OUT.unfinished` with the job's name until all is written.

    Raises:
        OSError: it cannot be written.
    """
    mark, plain, done = out.with_name(f"{out.name}.unfinished"), out.is_file() or not out.exists(), 0
    if plain and out.exists() and mark.is_file() and mark.read_text(encoding="utf-8") == job:
        done = _cut(out, samples)
        print(f"{out} was broken off after {done:,} prompts; it goes on there", file=sys.stderr)
    with out.open("a" if done else "w", encoding="utf-8") as paper:
        if plain:
            mark.write_text(job, encoding="utf-8")
        yield paper, done
    mark.unlink(missing_ok=True)


def _cut(out: Path, samples: int) -> int:
    """Leave whole lines of prompts that have all their answers; how many prompts that are."""
    ends = [0]
    with out.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n") or not _is_json(line):
                break
            ends.append(ends[-1] + len(line))
    done = (len(ends) - 1) // samples
    with out.open("r+b") as paper:
        paper.truncate(ends[done * samples])
    return done


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:  # a crash of the machine can leave anything
        return False
    return True
