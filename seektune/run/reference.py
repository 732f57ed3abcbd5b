"""The reference model of a run: adapters off, a checkpoint, or log-probabilities computed as the run begins."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from seektune.data.loader import JoinedBatches, Loader, in_order
from seektune.io.atomic import write_atomically
from seektune.io.console import say
from seektune.io.json_file import read_json, write_json
from seektune.io.run_files import REFERENCE
from seektune.parallel.cached_reference import CachedReference, DocumentSums
from seektune.parallel.model import ParallelModel
from seektune.parallel.reference import NO_REFERENCE, ModelReference, ReferenceModel
from seektune.recipe.recipe import Recipe
from seektune.run.context import RunContext
from seektune.run.data import TrainData
from seektune.run.frozen_models import load_frozen
from seektune.run.teacher import make_teacher, make_teachers
from seektune.run.teacher_files import read_teacher_files
from seektune.sequence import Batch
from seektune.train.objectives import DistillConfig
from seektune.train.rollout_objectives import OpdConfig, RolloutConfig

PART = 64
"""Batches of a file."""
SUFFIX = ".safetensors"
RECORD = "reference.json"
WEIGHTS = ("model", "lora", "seed")
"""Sections of a recipe that decide with which weights a run begins."""


def make_reference(recipe: Recipe, model: ParallelModel) -> ReferenceModel:
    """The reference or the teachers of the recipe's objective; a cached one is empty until `fill_reference`."""
    section = recipe.objective
    if isinstance(section, DistillConfig) and section.teacher_files is not None:
        return read_teacher_files(section, model)
    if isinstance(section, DistillConfig):
        return make_teacher(recipe, section, model)
    if isinstance(section, OpdConfig):
        return make_teachers(recipe, section, model)
    temperature = section.temperature if isinstance(section, RolloutConfig) else 1.0
    if section.frozen_models:
        return ModelReference(load_frozen(recipe, section.frozen_models[0], model.mesh), temperature)
    if recipe.switches_adapters_off:
        return ModelReference(model, temperature)
    return NO_REFERENCE if section.reference_choice is None else CachedReference()


def fill_reference(run: RunContext, model: ParallelModel, data: TrainData, reference: ReferenceModel) -> None:
    """Compute the log-probabilities of a cached reference, or read those that are there; others need nothing.

    Parts that an interrupted run has completed are kept.

    Raises:
        ValueError: the run resumes, but the values of its begin are not there.
        Interrupted: a signal asked to stop.
        OSError: a file could not be written.
    """
    if not isinstance(reference, CachedReference):
        return
    batches = _all_batches(run.recipe, data)
    cache = run.mesh.ranks.first(lambda: _open(run, data, len(batches)))
    missing = run.mesh.ranks.first(cache.missing)
    if missing:
        say(f"reference: log-probabilities of {len(batches):,} batches, with the weights as training begins")
    for number in missing:
        part = _computed(run, model, batches[number * PART : (number + 1) * PART])
        run.mesh.ranks.first(partial(cache.write, number, part))
    reference.found = DocumentSums.joined([cache.read(number) for number in range(cache.parts)])


@dataclass(frozen=True)
class ReferenceFiles:
    """The folder of a cached reference; each part is one file, whole or not there."""

    folder: Path
    parts: int

    def place(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:05}{SUFFIX}"

    def missing(self) -> list[int]:
        """The parts that are not there."""
        return [number for number in range(self.parts) if not self.place(number).is_file()]

    def write(self, number: int, part: DocumentSums) -> None:
        """Write a part.

        Raises:
            OSError: it could not be written.
        """
        tensors = {"digests": torch.from_numpy(part.digests.view(np.int64)), "sums": torch.from_numpy(part.sums)}
        write_atomically(self.place(number), save(tensors))

    def read(self, number: int) -> DocumentSums:
        """A part that is there."""
        held = load_file(self.place(number))
        return DocumentSums(held["digests"].numpy().view(np.uint64), held["sums"].numpy())


def _open(run: RunContext, data: TrainData, batches: int) -> ReferenceFiles:
    """The run's own folder with the reference of these rows and weights; what another has left there is removed.

    Raises:
        ValueError: the run resumes, and no folder has the reference that it began with.
    """
    recipe = run.recipe.model_dump(mode="json")
    rows = [data.digest, data.held_out_digest, batches]
    text = json.dumps([[recipe[section] for section in WEIGHTS], *rows], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    checkpoint = run.start.checkpoint
    places = [run.folder / REFERENCE, *([] if checkpoint is None else [checkpoint.parent.parent / REFERENCE])]
    folder = next((place for place in places if _key_of(place) == key), places[0])
    files = ReferenceFiles(folder, -(-batches // PART))
    if not run.is_fresh and (_key_of(folder) != key or files.missing()):
        raise ValueError(
            f"{places[-1]} lacks the reference's log-probabilities of this data, which can be computed as a run begins "
            "only; resume with the same training and held-out rows and evaluate.limit"
        )
    if _key_of(folder) != key:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"part-*{SUFFIX}"):
            left.unlink()
        write_json(folder / RECORD, {"key": key})
    return files if folder == places[0] else _copied(files, places[0], key)


def _copied(files: ReferenceFiles, folder: Path, key: str) -> ReferenceFiles:
    """The files of the run that this one starts from, in a folder of its own, from which it can be resumed.

    The record is written last: without it a stopped copy begins again.
    """
    own = ReferenceFiles(folder, files.parts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    for number in range(files.parts):
        write_atomically(own.place(number), files.place(number).read_bytes())
    write_json(folder / RECORD, {"key": key})
    return own


def _key_of(folder: Path) -> str | None:
    return read_json(folder / RECORD).get("key") if (folder / RECORD).is_file() else None


def _all_batches(recipe: Recipe, data: TrainData) -> Sequence[Batch]:
    """Every training example once, then the held-out ones."""
    assert isinstance(data.loader, Loader), "rows of pairs are not streamed"
    training = [in_order(each, recipe.batch, data.tokenizer.pad_id) for each in data.loader.mixture.datasets]
    return JoinedBatches([*training, data.validation])


def _computed(run: RunContext, model: ParallelModel, batches: Sequence[Batch]) -> DocumentSums:
    parts = []
    for batch in batches:
        parts.append(DocumentSums.of(batch, model.logprobs(batch)))
        run.stop_if_signalled()
    return DocumentSums.joined(parts)
