"""The command `generate`: completes a prompt on the console, or a file of prompts into a file of answers."""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from seektune.data.chat_format.choices import DEFAULT
from seektune.data.chat_format.parse import parse_message
from seektune.data.chat_format.tokens import EOS
from seektune.generate.detokenize import GeneratedText, generate_all, stream_text
from seektune.generate.engine import DecodeEngine
from seektune.generate.failed_ends import FAILED_ENDS
from seektune.generate.processes import ONE_PROCESS, DecodeProcesses
from seektune.generate.request import DraftCounts, Request
from seektune.generate.session import GenerateOptions, Session, note_cache_room
from seektune.io.atomic import refuse_existing
from seektune.io.jsonl import as_line
from seektune.io.text import check_unicode, printable
from seektune.workflows.prompt_rows import offered_tools, read_prompt_rows

PAGE = 8
"""Batches of prompts that are answered before their lines are written."""
MARK = re.compile(rb"[0-9a-f]{64}")
"""What the file beside unfinished answers holds: the digest of a job."""


@dataclass(frozen=True)
class Output:
    """What is generated and written."""

    samples: int = 1
    """Completions of each prompt."""
    logprobs: bool = False
    """Whether each token is written with its log-probability."""
    rows: int = 8
    """Maximum number of sequences decoded together."""


def generate_one(
    model: str,
    prompt: str,
    as_chat: bool,
    setting: GenerateOptions,
    output: Output,
    processes: DecodeProcesses = ONE_PROCESS,
) -> None:
    """Stream the completion of a prompt to the console; several samples one after the other.

    Each of `processes` calls it; rank 0 prints.

    Raises:
        ValueError: the model cannot be loaded, or the prompt is invalid or too long.
        OSError: a file of the model cannot be read.
    """
    check_unicode(prompt)
    voice = Session(model, setting, processes)
    voice.lead(partial(_stream, voice, prompt, as_chat, output.samples))


def _stream(voice: Session, prompt: str, as_chat: bool, samples: int) -> None:
    setting = voice.setting
    note_cache_room(voice.model, setting.memory, setting.speculative, setting.static_steps)
    ids = _ids({"messages": [{"role": "user", "content": prompt}]} if as_chat else {"prompt": prompt}, voice)
    requests = voice.requests(ids, samples, as_chat)
    drafts = DraftCounts()
    for i, request in enumerate(requests):
        if i:
            print("\n---")
        decoding = DecodeEngine(
            voice.model,
            [request],
            setting.speculative,
            memory=setting.memory,
            static_steps=setting.static_steps,
        )
        end = None
        for piece in stream_text(decoding, [request], voice.tokenizer):
            _write(piece.text, sys.stdout)
            end = piece.end
        print(flush=True)
        if end is not None and end in FAILED_ENDS:
            print(FAILED_ENDS[end], file=sys.stderr)
        drafts.add(decoding.drafts)
    _tell(drafts)


def generate_file(
    model: str,
    file: Path,
    out: Path,
    setting: GenerateOptions,
    output: Output,
    processes: DecodeProcesses = ONE_PROCESS,
) -> None:
    """Answer every row of a .jsonl file: `prompt` (a text) or `messages` (a conversation, with `tools` beside it).

    A line of `out` is the row with `sample`, `text` and `end` (`stop`, `length`, `error` or `memory`), for
    conversations also `message` if the response follows the chat format, and `tokens` if log-probabilities are written.
    The same call resumes an interrupted job. Each of `processes` calls it; rank 0 writes.

    Raises:
        ValueError: a row is not as it should be, or `out` holds something else (told before the model is read), or the
            model cannot be read.
        OSError: a file cannot be read or written.
    """
    rows = list(read_prompt_rows(file, setting.mode, setting.encoding or DEFAULT))
    if out.exists() and out.samefile(file):
        raise ValueError(f"{out}: the answers would overwrite the prompts; name another file")
    described = repr((model, setting, output.samples, output.logprobs, rows))
    job = hashlib.sha256(described.encode()).hexdigest()
    if processes.is_main:
        refuse_other_answers(out, job)
    voice = Session(model, setting, processes)
    voice.lead(partial(_answer, voice, rows, out, job, output))


def _answer(voice: Session, rows: list[dict[str, Any]], out: Path, job: str, output: Output) -> None:
    setting = voice.setting
    drafts = DraftCounts()
    note_cache_room(voice.model, setting.memory, setting.speculative, setting.static_steps)
    with answers(out, job, output.samples) as (paper, done):
        size = PAGE * max(output.rows // output.samples, 1)
        for start in range(done, len(rows), size):
            asked = [request for row in rows[start : start + size] for request in _requests(row, voice, output)]
            found, made = generate_all(
                voice.model,
                voice.tokenizer,
                asked,
                output.rows,
                setting.speculative,
                memory=setting.memory,
                static_steps=setting.static_steps,
            )
            drafts.add(made)
            for i, answer in enumerate(found):
                row, sample = divmod(i, output.samples)
                line = _line(rows[start + row], sample, answer, voice, output)
                paper.write(as_line(line))
            paper.flush()
            print(f"{min(start + size, len(rows)):,} of {len(rows):,} prompts", file=sys.stderr)
    _tell(drafts)


def _ids(row: dict[str, Any], voice: Session) -> list[int]:
    return voice.text(row["prompt"]) if "prompt" in row else voice.chat(row["messages"], offered_tools(row))


def _requests(row: dict[str, Any], voice: Session, output: Output) -> Sequence[Request]:
    return voice.requests(_ids(row, voice), output.samples, "messages" in row)


def _line(row: dict[str, Any], sample: int, answer: GeneratedText, voice: Session, output: Output) -> dict[str, Any]:
    line = {**row, "sample": sample, "text": answer.text, "end": answer.end}
    if "messages" in row and answer.end == "stop":
        try:
            line["message"] = parse_message(answer.text + EOS, voice.setting.mode, voice.encoding)
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


def _tell(drafts: DraftCounts) -> None:
    if drafts.made:
        print(f"drafts accepted: {drafts.accepted:,} of {drafts.made:,} ({drafts.rate:.1%})", file=sys.stderr)


def unfinished_mark(out: Path) -> Path:
    """The file beside the answers that holds the job's name until all are written."""
    return out.with_name(f"{out.name}.unfinished")


def is_begun(out: Path, job: str) -> bool:
    """Whether a file holds answers of the same `job`, which was broken off."""
    mark = unfinished_mark(out)
    return out.is_file() and mark.is_file() and mark.read_bytes() == job.encode()


def refuse_other_answers(out: Path, job: str) -> None:
    """Check that answers can be written without loss.

    Raises:
        ValueError: the file, or its mark, holds something that this job has not written.
    """
    if is_begun(out, job):
        return
    refuse_existing(out)
    mark = unfinished_mark(out)
    if not (mark.is_file() and MARK.fullmatch(mark.read_bytes())):
        refuse_existing(mark)


@contextmanager
def answers(out: Path, job: str, samples: int) -> Iterator[tuple[TextIO, int]]:
    """The output file, open for appending, and how many prompts it already completes: 0 unless of the same `job`.

    Until the job is complete, a file `OUT.unfinished` next to it has the job's digest.

    Raises:
        OSError: a file cannot be written.
    """
    mark = unfinished_mark(out)
    done = 0
    if is_begun(out, job):
        done = _cut(out, samples)
        print(f"{out} was interrupted after {done:,} prompts; resuming there", file=sys.stderr)
    if out.is_file() or not out.exists():  # the mark first: killed in between, the same command resumes
        mark.write_text(job, encoding="utf-8")
    with out.open("a" if done else "w", encoding="utf-8") as paper:
        yield paper, done
    mark.unlink(missing_ok=True)


def _cut(out: Path, samples: int) -> int:
    """Truncate the file to the prompts with all their samples; returns the number of these prompts."""
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
