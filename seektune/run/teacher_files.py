"""Files of a teacher's likeliest tokens: computed for the documents that they lack before the model is built."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from seektune.checkpoint.source import FolderSource
from seektune.data.config import BatchConfig
from seektune.data.examples import ExampleList
from seektune.data.loader import Loader, in_order
from seektune.data.streaming.loader import StreamLoader
from seektune.data.streaming.row_stream import ReaderNumber, RowStream
from seektune.io.console import say
from seektune.parallel.cached_reference import taught_documents
from seektune.parallel.model import ParallelModel
from seektune.parallel.teacher_files import (
    FiledTeacher,
    TeacherFiles,
    TopTokens,
    begin,
    check_identity,
    is_complete,
    set_complete,
    write_part,
)
from seektune.recipe.recipe import Recipe
from seektune.run.context import RunContext
from seektune.run.data import TrainData
from seektune.run.frozen_models import check_frozen, load_frozen
from seektune.run.named_key import locate_named, naming
from seektune.run.run_dir import locked
from seektune.sequence import Batch
from seektune.signals import Interrupted
from seektune.train.objective_section import FrozenModel
from seektune.train.objectives import DistillConfig

KEY = "objective.teacher_files"
BUSY = "another process computes these files; let it finish, or name another folder"
PART_NUMBERS = 2**24
"""Ids and log-probabilities of a part: 64 MB each."""
STREAMED_ROWS = 1024
"""Rows of a stream that are read at a time."""
SAMPLE = 4096
"""Bytes of each tensor that tell one checkpoint from another."""


def fill_teacher_files(run: RunContext, data: TrainData) -> None:
    """Compute what the teacher's files lack of the training rows, if the recipe names files and a teacher; collective.

    Parts that an interrupted run has written are kept. The teacher is in memory only here, and only if something is
    missing.

    Raises:
        ValueError: the files are made of another teacher, tokenizer or temperature, or are damaged.
        Interrupted: a signal asked to stop.
        OSError: a file could not be written.
    """
    section = run.recipe.objective
    if not isinstance(section, DistillConfig) or section.teacher_files is None:
        return
    folder = Path(section.teacher_files)
    wanted = next(iter(section.named_models), None)
    identity = identity_of(run.recipe, section, data, None if wanted is None else _weights_of(run, wanted))
    with naming(KEY):
        if wanted is None:
            run.mesh.ranks.first(lambda: check_identity(folder, identity))
            return
        key = _data_key(data, run.recipe.batch)
        run.mesh.ranks.first(lambda: begin(folder, identity))
        if not run.mesh.ranks.first(lambda: is_complete(folder, key)):
            with ExitStack() as stack:
                run.mesh.ranks.first(lambda: stack.enter_context(locked(folder, f"{folder}: {BUSY}")))
                run.mesh.ranks.first(lambda: check_identity(folder, identity))
                there = run.mesh.ranks.first(lambda: _there(folder))
                _Filling(run, wanted, section, folder, *there).fill(data)
                run.mesh.ranks.first(lambda: set_complete(folder, key))


def read_teacher_files(section: DistillConfig, model: ParallelModel) -> FiledTeacher:
    """The files as a reference for training; collective.

    Raises:
        ValueError: they are damaged.
    """
    assert section.teacher_files is not None, "the section names files"
    folder = Path(section.teacher_files)
    with naming(KEY):
        # every process reads them; an error of one is an error of all
        found: list[TeacherFiles] = []
        model.mesh.ranks.each(lambda: found.append(TeacherFiles(folder)))
    return FiledTeacher(found[0], section.teacher_top_k)


def identity_of(recipe: Recipe, section: DistillConfig, data: TrainData, weights: str | None) -> dict[str, Any]:
    """What files are made of; without the teacher's `weights`, what training reads them by."""
    known = {
        "tokenizer": hashlib.sha256(data.tokenizer.text.encode()).hexdigest(),
        "teacher_top_k": section.teacher_top_k,
        "temperature": section.temperature,
    }
    if weights is None:
        return known
    return {**known, "teacher": weights, "model.dtype": recipe.model.dtype, "model.numerics": recipe.model.numerics}


def weights_digest(folder: Path) -> str:
    """A digest of a checkpoint: its config, and shape, format and first bytes of each tensor, however it is sharded."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    files = FolderSource(folder).files
    for name in sorted(files.names()):
        file, start, size = files.location(name)
        digest.update(f"\n{name} {files.dtype(name)} {files.shape(name)} ".encode())
        with file.open("rb") as opened:
            opened.seek(start)
            digest.update(opened.read(min(size, SAMPLE)))
    return digest.hexdigest()


def _weights_of(run: RunContext, wanted: FrozenModel) -> str:
    def read() -> str:
        check_frozen(wanted, run.config)
        return weights_digest(locate_named(wanted.key, wanted.checkpoint))

    return run.mesh.ranks.first(read)


def _data_key(data: TrainData, batch: BatchConfig) -> str:
    shares = [each.held_out_share for each in data.streams]  # `digest` knows the rows of others only
    return hashlib.sha256(json.dumps([data.digest, shares, batch.length, batch.overlong]).encode()).hexdigest()


def _there(folder: Path) -> tuple[int, set[int]]:
    """The number of parts, and the documents in them."""
    files = TeacherFiles(folder)
    return files.parts, set(files.digests_U.tolist())


class _Filling:
    """Computes documents that are not there and writes them, a part at a time; every process does the same."""

    def __init__(
        self,
        run: RunContext,
        wanted: FrozenModel,
        section: DistillConfig,
        folder: Path,
        parts: int,
        there: set[int],
    ):
        self._run = run
        self._wanted = wanted
        self._section = section
        self._folder = folder
        self._parts = parts
        self._there = there
        self._teacher: ParallelModel | None = None
        self._found: list[TopTokens] = []

    def fill(self, data: TrainData) -> None:
        """Go through all training rows once."""
        for batch in training_batches(self._run.recipe, data, self._run.mesh.dims.data_size):
            missing = {each.digest for each in taught_documents(batch)} - self._there
            if missing:
                self._compute(batch, missing)
            try:
                self._run.stop_if_signalled()
            except Interrupted:
                self._write()
                raise
        self._write()

    def _compute(self, batch: Batch, missing: set[int]) -> None:
        if self._teacher is None:
            say(f"teacher: its {self._section.teacher_top_k} likeliest tokens go to {self._folder}")
            self._teacher = load_frozen(self._run.recipe, self._wanted, self._run.mesh)
        tops_BTX = self._teacher.top_tokens(batch, self._section.teacher_top_k, self._section.temperature)
        self._found.append(TopTokens.of(batch, tops_BTX, missing))
        self._there |= missing
        if sum(each.logprobs_NL.numel() for each in self._found) >= PART_NUMBERS:
            self._write()

    def _write(self) -> None:
        if not self._found:
            return
        part = TopTokens.joined(self._found)
        self._run.mesh.ranks.first(partial(write_part, self._folder, self._parts, part))
        self._parts += 1
        self._found = []


def training_batches(recipe: Recipe, data: TrainData, shares: int) -> Iterator[Batch]:
    """Every training document once, of an epoch if rows are streamed; batches for so many data-parallel groups."""
    shape = recipe.batch.model_copy(update={"micro_size": recipe.batch.micro_size * shares})
    pad = data.tokenizer.pad_id
    if isinstance(data.loader, StreamLoader):
        for number, streamed in enumerate(data.streams):
            rows = RowStream(streamed, number, ReaderNumber(0, 1, recipe.seed))
            while rows.epoch == 0:
                yield from in_order(ExampleList(rows.examples(STREAMED_ROWS, shape, once=True)), shape, pad)
        return
    assert isinstance(data.loader, Loader), "the recipe was checked: rows have one length"
    for examples in data.loader.mixture.datasets:
        yield from in_order(examples, shape, pad)
