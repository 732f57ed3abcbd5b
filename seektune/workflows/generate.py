"""The verb `generate`: a prompt that is gone on with as one watches, or a file of prompts into a file of answers."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from seektune.data.chat_format.parse import parse_message
from seektune.data.chat_format.tokens import EOS
from seektune.generate.detokenize import GeneratedText, generate_all, stream_text
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Drafts, Request
from seektune.generate.session import GenerateOptions, Session
from seektune.io.console import printable
from seektune.io.jsonl import as_line
from seektune.io.text import check_unicode
from seektune.workflows.prompt_rows import prompt_text, read_prompt_rows

PAGE = 8
"""Batches of prompts that are answered before their lines are written."""


@dataclass(frozen=True)
class Output:
    """How answers are given."""

    samples: int = 1
    """Answers to each prompt."""
    logprobs: bool = False
    """Whether each token is written with its log-probability."""
    rows: int = 8
    """Answers that grow together."""


def generate_one(model: str, prompt: str, as_chat: bool, setting: GenerateOptions, output: Output) -> None:
    """Print what a model goes on with, as it comes; several answers one after the other.

    Raises:
        ValueError: the model cannot be read, or the prompt not be met.
        OSError: as of reading a model.
    """
    check_unicode(prompt)
    voice = Session(model, setting)
    ids = _ids({"messages": [{"role": "user", "content": prompt}]} if as_chat else {"prompt": prompt}, voice)
    requests = voice.requests(ids, output.samples)
    drafts = Drafts()
    for i, request in enumerate(requests):
        if i:
            print("\n---")
        decoding = DecodeEngine(voice.model, [request], setting.speculative)
        for piece in stream_text(decoding, [request], voice.tokenizer):
            _write(piece.text, sys.stdout)
        print(flush=True)
        drafts.made += decoding.drafts.made
        drafts.accepted += decoding.drafts.accepted
    _tell(drafts)


def generate_file(model: str, file: Path, out: Path, setting: GenerateOptions, output: Output) -> None:
    """Answer every row of a .jsonl file: `prompt` (a text) or `messages` (a conversation, with `tools` beside it).

    A line of `out` is the row with `sample`, `text` and `end` (`stop` or `length`), for conversations also `message`
    where the answer follows the format, and `tokens` where log-probabilities are asked for. A job that was broken off
    goes on where it was when it is begun again.

    Raises:
        ValueError: a row is not as it should be (told before the model is read), or the model cannot be read.
        OSError: a file cannot be read or written.
    """
    rows = list(read_prompt_rows(file, setting.mode))
    if out.exists() and out.samefile(file):
        raise ValueError(f"{out}: the answers would overwrite the prompts; name another file")
    voice = Session(model, setting)
    drafts = Drafts()
    job = repr((model, setting, output.samples, output.logprobs, rows))
    with answers(out, hashlib.sha256(job.encode()).hexdigest(), output.samples) as (paper, done):
        size = PAGE * max(output.rows // output.samples, 1)
        for start in range(done, len(rows), size):
            asked = [request for row in rows[start : start + size] for request in _requests(row, voice, output)]
            found, made = generate_all(voice.model, voice.tokenizer, asked, output.rows, setting.speculative)
            drafts.made = drafts.made + made.made
            drafts.accepted = drafts.accepted + made.accepted
            for i, answer in enumerate(found):
                row, sample = divmod(i, output.samples)
                line = _line(rows[start + row], sample, answer, voice, output)
                paper.write(as_line(line))
            paper.flush()
            print(f"{min(start + size, len(rows)):,} of {len(rows):,} prompts", file=sys.stderr)
    _tell(drafts)


def _ids(row: dict[str, Any], voice: Session) -> list[int]:
    text = prompt_text(row, voice.setting.mode)
    return voice.text(text) if "prompt" in row else voice.tokenizer.encode_prompt(text)


def _requests(row: dict[str, Any], voice: Session, output: Output) -> Sequence[Request]:
    return voice.requests(_ids(row, voice), output.samples)


def _line(row: dict[str, Any], sample: int, answer: GeneratedText, voice: Session, output: Output) -> dict[str, Any]:
    line = {**row, "sample": sample, "text": answer.text, "end": answer.end}
    if "messages" in row and answer.end == "stop":
        try:
            line["message"] = parse_message(answer.text + EOS, voice.setting.mode)
        except ValueError as error:
            line["problem"] = str(error)
    if output.logprobs:
        decode = voice.tokenizer.decode
        line["tokens"] = [
            {"id": token.id, "text": decode([token.id]), "logprob": round(token.logprob, 6)} for token in answer.tokens
        ]
    return line


def _write(text: str, paper: TextIO) -> None:
    paper.write(printable(text) if paper.isatty() else text)
    paper.flush()


def _tell(drafts: Drafts) -> None:
    if drafts.made:
        print(f"drafts accepted: {drafts.accepted:,} of {drafts.made:,} ({drafts.rate:.1%})", file=sys.stderr)


@contextmanager
def answers(out: Path, job: str, samples: int) -> Iterator[tuple[TextIO, int]]:
    """The file, open for more lines, and how many prompts are answered in it already: 0 unless by the same `job`.

    Beside it stands a file `OUT.unfinished` with the job's name until all is written.

    Raises:
        OSError: it cannot be written.
    """
    mark = out.with_name(f"{out.name}.unfinished")
    plain = out.is_file() or not out.exists()
    done = 0
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
