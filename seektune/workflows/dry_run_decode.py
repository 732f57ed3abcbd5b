"""The option `--dry-run` of `generate` and `serve`: what each process would hold, from the code that places weights."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.source import FolderSource
from seektune.generate.cache_limit import CacheLimit
from seektune.generate.capacity import CacheRoom
from seektune.generate.processes import decode_dims
from seektune.generate.session import LoadOptions
from seektune.io.console import say, size
from seektune.model.config import DeepseekV4Config
from seektune.model.device import DTYPES
from seektune.model.quantized import KindOf
from seektune.model.variants import BASE, VARIANTS
from seektune.parallel.dims import ParallelDims
from seektune.parallel.load import without_weights
from seektune.parallel.mesh import Mesh
from seektune.parallel.simulate.fake_backend import fake_process_group
from seektune.planner.hardware import known_gpu

PARTS = {
    "mtp.": "MTP block",
    ".ffn.experts.": "routed experts",
    ".attn.": "attention",
    ".ffn.": "gates and shared experts",
    "layers.": "norms and mixing",
}
"""Parts of the weights, by what is in their names; the first that fits."""
ENDS = "embedding and head"
NOTES = """Counted on tensors without memory: weights in the formats of the checkpoint, or of the release, if they stay
quantized; no adapters. Caches may take what weights leave of --gpu-memory-utilization, and have to be there twice while
sequences join and leave."""


@dataclass(frozen=True)
class DecodeLayout:
    """The processes that would decode, and their GPUs."""

    world: int
    ep_size: int | None
    pp_size: int
    gpu: str
    """A type that the planner knows."""


@dataclass(frozen=True)
class Placement:
    """What the first process of a pipeline stage holds; the others of its stage hold as much."""

    rank: int
    layers: Sequence[int]
    parts: Counter[str]
    """Bytes of the weights, by part."""
    room: CacheRoom

    def lines(self) -> Iterator[str]:
        """For the console."""
        yield f"rank {self.rank}: layers {self.layers[0]} to {self.layers[-1]}" if self.layers else f"rank {self.rank}"
        parts = ", ".join(f"{size(count)} {part}" for part, count in self.parts.most_common())
        yield f"  weights: {size(self.parts.total())} ({parts})"
        yield f"  KV cache: {self.room}"


def dry_run_decode(model: str, reading: LoadOptions, layout: DecodeLayout, limit: CacheLimit) -> None:
    """Print what the processes hold of a model: of a local folder, a release's Hub id, or a preset.

    Raises:
        ValueError: the architecture is not known without the network, or the layout does not fit the model.
    """
    config, kind_of = _architecture(model)
    kinds = kind_of if reading.quantized else None
    dims = decode_dims(layout.world, layout.ep_size, layout.pp_size, config)
    memory = known_gpu(layout.gpu, layout.world).memory
    say(f"{dims.world} x {layout.gpu}: {dims}, {size(memory)} of memory each")
    allowed = round(limit.gpu_memory_utilization * memory)
    for rank in range(0, dims.world, dims.stage_size):
        for line in placed(config, kinds, reading, dims, rank, allowed).lines():
            say(line)
    for line in NOTES.splitlines():
        say(line)


def placed(
    config: DeepseekV4Config, kind_of: KindOf | None, reading: LoadOptions, dims: ParallelDims, rank: int, allowed: int
) -> Placement:
    """What a rank holds, where weights and caches may take `allowed` bytes; `kind_of` is None for decoded weights."""
    dtype = DTYPES[reading.dtype or "bf16"]
    with fake_process_group(rank, dims.world):
        mesh = Mesh.of(dims, torch.device("cpu"), control="fake")
        part = without_weights(config, dtype, reading.numerics, mesh, kind_of)
    parts: Counter[str] = Counter()
    for name, x in part.state_dict().items():
        parts[next((part for known, part in PARTS.items() if known in name), ENDS)] += x.nbytes
    longest = config.max_position_embeddings
    free = max(allowed - parts.total(), 0)
    layers = [block.ffn.layer for block in part.layers]
    return Placement(rank, layers, parts, CacheRoom(part.cache_size(longest), free, longest, 0, grows=True))


def _architecture(model: str) -> tuple[DeepseekV4Config, KindOf]:
    """The config, and the kind of each tensor on disk."""
    folder = Path(model)
    if folder.is_dir():
        return DeepseekV4Config.from_pretrained(folder), FolderSource(folder).kind
    for variant in VARIANTS:
        if model in (variant.name, *variant.repositories):
            return DeepseekV4Config.preset(variant.name), FORMATS[BASE if BASE in variant.name else "released"].kind
    names = ", ".join(variant.name for variant in VARIANTS)
    raise ValueError(f"a dry run does not use the network, and {model} is not a folder; name one, or one of {names}")
