"""A teacher's likeliest tokens in files, found by what a document holds: distillation without the teacher in memory.

Shapes: B rows, T tokens, U documents, N taught tokens, K kept tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from seektune.io.atomic import write_atomically
from seektune.io.json_file import read_json, write_json
from seektune.parallel.cached_reference import taught_documents
from seektune.sequence import TEACHER_IDS, TEACHER_LOGPROBS, Batch

RECORD = "teacher.json"
IDENTITY = "made of"
COMPLETE = "complete for"
"""In the record: the numbers of all parts when the documents of some data were complete, by its digest."""
PART = "part-{:05}.safetensors"
PART_FILES = "part-[0-9][0-9][0-9][0-9][0-9].safetensors"


class TopTokens(NamedTuple):
    """Documents by the digest of their tokens and labels, and the teacher's likeliest tokens at each taught one."""

    digests_U: NDArray[np.uint64]
    counts_U: NDArray[np.int32]
    """Taught tokens of each document."""
    ids_NK: Tensor
    """int32."""
    logprobs_NL: Tensor
    """As the column `teacher_logprobs`, fp32 `[N, K + 1]`."""

    @classmethod
    def of(cls, batch: Batch, tops_BTX: Tensor, wanted: set[int]) -> "TopTokens":
        """Of the documents of a batch with these digests, each once, from what `ParallelModel.top_tokens` gives."""
        kept = tops_BTX.shape[-1] // 2
        # from the positions that predict tokens to the tokens themselves
        at_labels_BTX = F.pad(tops_BTX.cpu()[:, :-1], (0, 0, 1, 0))
        documents = {each.digest: each for each in taught_documents(batch) if each.digest in wanted}
        found = [at_labels_BTX[each.row, each.places] for each in documents.values()]
        tops_NX = torch.cat([tops_BTX.new_zeros(0, 2 * kept + 1, device="cpu"), *found])
        digests = np.array([*documents], np.uint64)
        counts = np.array([len(each) for each in found], np.int32)
        return cls(digests, counts, tops_NX[:, :kept].int(), tops_NX[:, kept:].contiguous())

    @classmethod
    def joined(cls, parts: Sequence["TopTokens"]) -> "TopTokens":
        """Those of several batches, in order."""
        return cls(
            np.concatenate([part.digests_U for part in parts]),
            np.concatenate([part.counts_U for part in parts]),
            torch.cat([part.ids_NK for part in parts]),
            torch.cat([part.logprobs_NL for part in parts]),
        )


class TeacherFiles:
    """The documents of a folder of such files; what is added later is not seen."""

    def __init__(self, folder: Path):
        """Read which documents there are.

        Raises:
            ValueError: a file is damaged.
        """
        self.folder = folder
        self.parts = 0
        """One more than the last part's number; parts before it can be missing."""
        self._opened: dict[int, Any] = {}
        digests: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        places: list[NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
        for number in part_numbers(folder):
            own, counts = _documents_of(folder / PART.format(number))
            begins = np.cumsum(counts, dtype=np.int64) - counts
            digests.append(own)
            places.append(np.stack([np.full_like(begins, number), begins, begins + counts], axis=1))
            self.parts = number + 1
        self.digests_U, first = np.unique(np.concatenate(digests), return_index=True)
        self._places = np.concatenate(places)[first]

    def read(self, digest: int) -> tuple[Tensor, Tensor] | None:
        """Ids `[N, K]` and log-probabilities `[N, K + 1]` at a document's taught tokens; None if it is not there."""
        number = int(np.searchsorted(self.digests_U, np.uint64(digest)))
        if number == len(self.digests_U) or self.digests_U[number] != digest:
            return None
        part, begin, end = self._places[number].tolist()
        if part not in self._opened:
            self._opened[part] = safe_open(self.folder / PART.format(part), "pt")
        ids, logprobs = (self._opened[part].get_slice(name)[begin:end] for name in ("ids", "logprobs"))
        return ids, logprobs


def part_numbers(folder: Path) -> list[int]:
    """The numbers of the parts in a folder, in order."""
    return sorted(int(file.stem.removeprefix("part-")) for file in folder.glob(PART_FILES))


def write_part(folder: Path, number: int, found: TopTokens) -> None:
    """Write a part, which is there whole or not at all.

    Raises:
        OSError: it could not be written.
    """
    tensors = {
        "digests": torch.from_numpy(found.digests_U.view(np.int64)),
        "counts": torch.from_numpy(found.counts_U),
        "ids": found.ids_NK,
        "logprobs": found.logprobs_NL,
    }
    write_atomically(folder / PART.format(number), save(tensors))


def _documents_of(file: Path) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    try:
        with safe_open(file, "pt") as tensors:
            digests, counts = (tensors.get_tensor(name).numpy() for name in ("digests", "counts"))
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); remove it, and it is computed again") from None
    return digests.view(np.uint64), counts


class FiledTeacher:
    """A `ReferenceModel` that reads the columns of `TopKDistillation` from files."""

    def __init__(self, files: TeacherFiles, kept: int):
        """`kept` is K."""
        self._files = files
        self._kept = kept

    def own(self, batch: Batch) -> Batch:
        """As `ReferenceModel`: what the teacher predicts in place of each taught token is at that token.

        Raises:
            ValueError: a document is not in the files.
        """
        shape = batch.tokens.shape
        ids_BTK = torch.zeros(*shape, self._kept, dtype=torch.int32)
        logprobs_BTL = torch.zeros(*shape, self._kept + 1)
        for each in taught_documents(batch):
            found = self._files.read(each.digest)
            if found is None or len(found[0]) != len(each.places):
                raise ValueError(
                    f"{self._files.folder} has nothing for a document of {len(each.places)} taught tokens: the data is "
                    "not what it was made of; name objective.teacher, which computes what is missing"
                )
            ids_BTK[each.row, each.places], logprobs_BTL[each.row, each.places] = found
        device = batch.tokens.device
        return batch.having(TEACHER_IDS, ids_BTK.to(device)).having(TEACHER_LOGPROBS, logprobs_BTL.to(device))

    def shared(self, batch: Batch) -> Batch:
        """As `ReferenceModel`; held-out rows are measured by cross-entropy, which needs no teacher."""
        return batch


def begin(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make the folder, or check that the files in it are made of the same.

    Raises:
        ValueError: they are not; the message names the first difference.
        OSError: it could not be made.
    """
    if (folder / RECORD).is_file():
        check_identity(folder, identity)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, {IDENTITY: dict(identity), COMPLETE: {}})


def check_identity(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Check what the files of a folder are made of, as far as it is wanted.

    Raises:
        ValueError: it is something else, or the folder has no such files.
    """
    if not (folder / RECORD).is_file():
        raise ValueError(f"{folder} has no {RECORD}: name objective.teacher, which computes the files")
    found = read_json(folder / RECORD).get(IDENTITY)
    for name, value in wanted.items():
        there = found.get(name) if isinstance(found, dict) else None
        if there != value:
            raise ValueError(f"{folder} is made with another {name} ({there}, not {value}); name another folder")


def is_complete(folder: Path, data: str) -> bool:
    """Whether all documents of this data, by its digest, are there: no part has been removed since."""
    return part_numbers(folder) == _complete(folder).get(data)


def _complete(folder: Path) -> dict[str, Any]:
    found = read_json(folder / RECORD).get(COMPLETE)
    return found if isinstance(found, dict) else {}


def set_complete(folder: Path, data: str) -> None:
    """Record that they are.

    Raises:
        OSError: it could not be written.
    """
    record = read_json(folder / RECORD)
    write_json(folder / RECORD, {**record, COMPLETE: {**_complete(folder), data: part_numbers(folder)}})
