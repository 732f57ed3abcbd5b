"""Decode steps of static shapes on one device, which a GPU runs as captured graphs.

Shapes: B sequences, R rows of the buffers, S streams, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.generate.capacity import padded_rows
from seektune.generate.decodable import DecodableModel
from seektune.generate.plan import EngineOptions
from seektune.kernels import static_kernels
from seektune.lora.layers import RoundedLinear, RoundedMatrix
from seektune.model.fake_quantized import FakeQuantizedExperts, FakeQuantizedLinear
from seektune.model.kv_cache.cache import KVCache
from seektune.model.kv_cache.static import StaticCache
from seektune.model.kv_cache.static_layout import StaticLayout
from seektune.model.quantized import QuantizedWeight
from seektune.model.token_dispatch import LocalDispatch
from seektune.model.transformer import TokenRows, TransformerPart

WARM_UPS = 2
"""Runs before a graph is captured, in which libraries allocate what they keep."""
ROUNDED = (RoundedLinear, RoundedMatrix, FakeQuantizedLinear, FakeQuantizedExperts)
"""Modules that round their weights anew in each forward pass."""


def static_obstacle(model: DecodableModel) -> str | None:
    """Why a model has no static steps; None if it has."""
    if not isinstance(model, TransformerPart) or not (model.is_first and model.is_last):
        return "layers are spread over pipeline stages"
    if not all(isinstance(block.ffn.dispatch, LocalDispatch) for block in model.layers):
        return "experts are spread over processes"
    for module in model.layers.modules():
        if isinstance(module, ROUNDED):
            return "weights are trained through the rounding of a format"
        if isinstance(module, QuantizedWeight) and module.parts is not None:
            return "weights are streamed from the checkpoint"
        if isinstance(module, QuantizedWeight) and module.fp8_inputs:
            return "numerics: serving rounds the inputs of quantized weights to FP8"
    return None


def make_static_steps(model: DecodableModel, options: EngineOptions) -> "StaticSteps | None":
    """The static steps of an engine, if its options ask for them.

    Raises:
        ValueError: the model has none, or the engine drafts.
    """
    if not options.static_steps:
        return None
    obstacle = "drafts need several tokens in a step" if options.speculative else static_obstacle(model)
    if obstacle is not None:
        raise ValueError(f"static_steps (--cuda-graphs): {obstacle}; leave it out")
    assert isinstance(model, TransformerPart)
    return StaticSteps(model)


@dataclass(frozen=True)
class RowsStep:
    """The step for a number of rows of the buffers."""

    cache: StaticCache
    tokens_R1: Tensor
    run: Callable[[], Tensor]
    """The forward pass of these tokens; gives the same tensor each time."""
    graph: torch.cuda.CUDAGraph | None = None
    """What `run` replays on a GPU."""


class StaticSteps:
    """Runs the backbone on one token of each sequence, in buffers that keep shape and address.

    The buffers are copies of a cache's rows: they are loaded when another cache is decoded, or a row has grown beyond
    their capacity, and `write_back` copies them back before the cache itself is read. Steps of fewer rows run on the
    first rows of the same buffers, each captured once for every power of two.
    """

    def __init__(self, model: TransformerPart):
        self._model = model
        self._cache: KVCache | None = None
        """The cache whose rows are in the buffers, and not up to date itself."""
        self._buffers: StaticCache | None = None
        self._tokens_R1 = torch.empty(0)
        self._steps: dict[int, RowsStep] = {}
        """By number of rows."""
        self._current: RowsStep | None = None

    @property
    def nbytes(self) -> int:
        """Size of the buffers in bytes."""
        return 0 if self._buffers is None else self._buffers.nbytes

    @property
    def captured(self) -> list[int]:
        """The numbers of rows whose steps are kept."""
        return list(self._steps)

    @torch.no_grad()
    def advance(self, tokens_B1: Tensor, cache: KVCache) -> Tensor:
        """As `DecodableModel.advance` of one token per row; what it returns is valid until the next call.

        Raises:
            ValueError: the cache has no room.
        """
        self.prepare(cache)
        streams_B1SD = self.forward(tokens_B1)
        cache.count([1] * cache.rows)
        return streams_B1SD

    @torch.no_grad()
    def prepare(self, cache: KVCache) -> None:
        """Allocate what a step of the rows of a cache needs, and load them.

        Raises:
            ValueError: the cache has no room.
            RuntimeError: memory is exhausted.
        """
        if max(cache.lengths) >= cache.room:
            self.write_back()
        cache.make_room(1)
        if self._cache is not cache or (self._buffers is not None and self._buffers.room != cache.room):
            self.write_back()
            self._load(cache)

    def forward(self, tokens_B1: Tensor) -> Tensor:
        """A step on the buffers alone: nothing of it depends on values on the host."""
        step = self._current
        assert step is not None
        step.tokens_R1[: len(tokens_B1)] = tokens_B1
        streams_R1SD = step.run()
        step.cache.positions_R1.add_(1)
        return streams_R1SD[: len(tokens_B1)]

    def addresses(self) -> list[int]:
        """Of all buffers, which a captured graph reads and writes."""
        assert self._buffers is not None
        return [x.data_ptr() for x in (self._tokens_R1, *self._buffers.tensors())]

    def write_back(self) -> None:
        """Bring the cache that was decoded up to date."""
        if self._cache is not None and self._current is not None:
            self._current.cache.store(self._cache)
        self._cache = None

    def drop(self) -> None:
        """Free the buffers and what was captured of them, after a `write_back`."""
        self.write_back()
        self._steps = {}
        self._current = None
        self._buffers = None

    def _load(self, cache: KVCache) -> None:
        rows = padded_rows(cache.rows)
        if self._buffers is None or self._buffers.room != cache.room or self._buffers.rows < rows:
            self.drop()  # its memory is free before that of the next is taken
            self._buffers = StaticCache.like(cache, rows)
            self._tokens_R1 = torch.zeros_like(self._buffers.positions_R1)
        first = self._buffers.first(rows)
        first.load(cache)
        if rows not in self._steps:
            self._steps[rows] = self._made(first)
        self._current = self._steps[rows]
        self._cache = cache

    def _made(self, cache: StaticCache) -> RowsStep:
        tokens_R1 = self._tokens_R1[: cache.rows]

        def step() -> Tensor:
            """A function of tensors that stay where they are."""
            with static_kernels():
                rows = TokenRows(tokens_R1, StaticLayout.of(cache))
                return self._model.backbone(rows).streams_BTSD

        if not tokens_R1.is_cuda:
            return RowsStep(cache, tokens_R1, step)
        graph, out = captured(step, [each.graph for each in self._steps.values()])

        def replay() -> Tensor:
            graph.replay()
            return out

        return RowsStep(cache, tokens_R1, replay, graph)


def captured(
    step: Callable[[], Tensor], others: Sequence[torch.cuda.CUDAGraph | None]
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of the work of a step on the GPU, in the memory of others, of which one runs at a time; and its result.

    A step may run several times for the same token: it writes the same values to the same places.
    """
    pool = next((graph.pool() for graph in others if graph is not None), None)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = step()
    return graph, out
