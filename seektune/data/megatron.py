"""Token files of Megatron-Core: a .bin with the tokens of all sequences, and an .idx with their lengths and documents.

Shapes: S sequences, D documents. The .idx is, little-endian: the magic bytes, the version (uint64), the code of the
token's type (uint8), S and D + 1 (uint64), lengths int32 [S], byte offsets int64 [S], and the number of the first
sequence of each document, then S, int64 [D + 1].
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seektune.io.atomic import replacing, write_all
from seektune.io.regular_file import check_regular

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEAD = struct.Struct("<9sQBQQ")
TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
"""Types of tokens by their code; two more are floating-point numbers."""
SMALL = 65500
"""With fewer ids, tokens are written as uint16, otherwise as int32; as Megatron-Core chooses."""


@dataclass(frozen=True)
class MegatronFile:
    """A pair of .bin and .idx, memory-mapped."""

    tokens: NDArray[np.integer]
    """Of all sequences."""
    bounds: NDArray[np.int64]
    """Where each document begins in `tokens`, and their end, [D + 1]."""

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.bounds) - 1

    def document(self, number: int) -> NDArray[np.uint32]:
        """The tokens of a document, which may have several sequences."""
        return self.tokens[self.bounds[number] : self.bounds[number + 1]].astype(np.uint32)


def paths_of(prefix: Path) -> tuple[Path, Path]:
    """The .bin and the .idx of a prefix, which may also be the name of one of them."""
    stem = prefix.with_suffix("") if prefix.suffix in (".bin", ".idx") else prefix
    return stem.with_name(f"{stem.name}.bin"), stem.with_name(f"{stem.name}.idx")


def open_megatron(prefix: Path) -> MegatronFile:
    """Open the files of a prefix.

    Raises:
        ValueError: one is missing, or they are not what they should be.
    """
    data, index = paths_of(prefix)
    for file in (data, index):
        if not file.is_file():
            raise ValueError(f"{file} is missing; Megatron's token files are a pair of .bin and .idx")
        check_regular(file)
    try:
        return _open(data, index)
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{index}: not an index of Megatron's token files, or damaged ({error})") from None


def _open(data: Path, index: Path) -> MegatronFile:
    content = index.read_bytes()
    magic, version, code, sequences, documents = HEAD.unpack_from(content)
    if magic != MAGIC or version != VERSION:
        raise ValueError("another format or version")
    dtype = np.dtype(TYPES[code])
    lengths = np.frombuffer(content, np.int32, sequences, HEAD.size)
    offsets = np.frombuffer(content, np.int64, sequences, HEAD.size + 4 * sequences)
    firsts = np.frombuffer(content, np.int64, documents, HEAD.size + 12 * sequences)
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if (lengths < 0).any() or not np.array_equal(offsets, ends[:-1] * dtype.itemsize):
        raise ValueError("its sequences do not follow one another")
    if not documents or firsts[0] != 0 or firsts[-1] != sequences or (np.diff(firsts) < 0).any():
        raise ValueError("its documents are not whole sequences in order")
    size = data.stat().st_size
    if size != ends[-1] * dtype.itemsize:
        raise ValueError(f"{data.name} has {size:,} bytes, not {ends[-1] * dtype.itemsize:,}")
    tokens = np.memmap(data, dtype, mode="r") if size else np.empty(0, dtype)
    return MegatronFile(tokens, ends[firsts])


def write_megatron(prefix: Path, documents: Iterable[NDArray[np.uint32]], vocab_size: int) -> int:
    """Write documents, each as one sequence; returns their number of tokens. Files appear when they are complete.

    Raises:
        OSError: they could not be written.
    """
    data, index = paths_of(prefix)
    dtype = np.dtype(np.uint16 if vocab_size < SMALL else np.int32)
    sizes = []
    with replacing(data) as file:
        for tokens in documents:
            sizes.append(len(tokens))
            write_all(file, tokens.astype(dtype).tobytes(), data)
    lengths = np.array(sizes, np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    code = next(code for code, kind in TYPES.items() if dtype == kind)
    with replacing(index) as file:
        parts = (
            HEAD.pack(MAGIC, VERSION, code, len(sizes), len(sizes) + 1),
            lengths.tobytes(),
            (offsets[:-1] * dtype.itemsize).tobytes(),
            np.arange(len(sizes) + 1, dtype=np.int64).tobytes(),
        )
        write_all(file, b"".join(parts), index)
    return int(offsets[-1])
