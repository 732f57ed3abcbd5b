"""The option `--dry-run` of `generate` and `serve`: what each process would hold, from the code that places weights."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from seektune.generate.cache_limit import WHOLE_CONTEXT, CacheLimit, CacheUse
from seektune.generate.capacity import CacheRoom, prefix_share
from seektune.generate.drafter import drafter_of
from seektune.generate.processes import DecodeProcesses, decode_dims
from seektune.generate.session import LoadOptions
from seektune.io.console import say, size
from seektune.model.config import DeepseekV4Config
from seektune.model.device import DTYPES
from seektune.model.kv_cache.decode import CachedTransformer
from seektune.model.quantized import KindOf
from seektune.parallel.dims import ParallelDims
from seektune.parallel.load import without_weights
from seektune.parallel.mesh import Mesh
from seektune.parallel.process_group import ProcessSlot
from seektune.parallel.simulate.fake_backend import fake_process_group
from seektune.planner.hardware import known_gpu
from seektune.workflows.known_architecture import known_architecture

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


def dry_run_decode(
    model: str, reading: LoadOptions, layout: DecodeLayout, limit: CacheLimit, caches: CacheUse = WHOLE_CONTEXT
) -> None:
    """Print what the processes hold of a model: of a local folder, a release's Hub id, or a preset.

    Raises:
        ValueError: the architecture is not known without the network, or the layout does not fit the model.
    """
    config, kind_of = known_architecture(model)
    kinds = kind_of if reading.quantized else None
    DecodeProcesses(ProcessSlot(layout.world)).check_static_steps(
        caches.static_steps, caches.speculative, reading.numerics
    )
    dims = decode_dims(layout.world, layout.ep_size, layout.pp_size, config)
    memory = known_gpu(layout.gpu, layout.world).memory
    say(f"{dims.world} x {layout.gpu}: {dims}, {size(memory)} of memory each")
    allowed = round(limit.gpu_memory_utilization * memory)
    for rank in range(0, dims.world, dims.stage_size):
        for line in placed(config, kinds, reading, dims, rank, allowed, caches, limit.engines).lines():
            say(line)
    for line in NOTES.splitlines():
        say(line)


def placed(
    config: DeepseekV4Config,
    kind_of: KindOf | None,
    reading: LoadOptions,
    dims: ParallelDims,
    rank: int,
    allowed: int,
    caches: CacheUse = WHOLE_CONTEXT,
    engines: int = 1,
) -> Placement:
    """What a rank holds, where weights and the caches of all `engines` may take `allowed` bytes.

    `kind_of` is None for decoded weights.
    """
    dtype = DTYPES[reading.dtype or "bf16"]
    with fake_process_group(rank, dims.world):
        mesh = Mesh.of(dims, torch.device("cpu"), control="fake")
        part = without_weights(config, dtype, reading.numerics, mesh, kind_of)
    parts: Counter[str] = Counter()
    for name, x in part.state_dict().items():
        parts[next((part for known, part in PARTS.items() if known in name), ENDS)] += x.nbytes
    layers = [block.ffn.layer for block in part.layers]
    return Placement(rank, layers, parts, _room(part, max(allowed - parts.total(), 0) // engines, dims, caches))


def _room(part: CachedTransformer, free: int, dims: ParallelDims, caches: CacheUse) -> CacheRoom:
    """As an engine measures it."""
    longest = caches.longest or part.config.max_position_embeddings
    drafter = drafter_of(part) if caches.speculative else None
    wanted = 0 if caches.speculative or dims.pp_size > 1 else caches.prefix_bytes
    prefixes = prefix_share(wanted, free)
    size = part.cache_size(longest, caches.speculative)
    ahead = 0 if drafter is None else drafter.size
    return CacheRoom(
        size, free - prefixes, longest, ahead, grows=True, prefixes=prefixes, static_steps=caches.static_steps
    )
