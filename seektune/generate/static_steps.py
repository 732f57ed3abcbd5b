"""Decode steps of static shapes on one device, which a GPU runs as one captured graph.

Shapes: B sequences, R rows of the buffers, S streams, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from seektune.generate.decodable import DecodableModel
from seektune.generate.plan import EngineOptions
from seektune.kernels import static_kernels
from seektune.model.kv_cache.cache import KVCache
from seektune.model.kv_cache.static import StaticCache
from seektune.model.kv_cache.static_layout import StaticLayout
from seektune.model.linear import Linear
from seektune.model.moe import Experts, MoE
from seektune.model.token_dispatch import LocalDispatch
from seektune.model.transformer import TokenRows, TransformerPart

WARM_UPS = 2
"""Runs before a graph is captured, in which libraries allocate what they keep."""


def static_obstacle(model: DecodableModel) -> str | None:
    """Why a model has no static steps; None if it has."""
    if not isinstance(model, TransformerPart) or not (model.is_first and model.is_last):
        return "layers are spread over pipeline stages"
    experts = [block.ffn for block in model.layers]
    if not all(isinstance(each.dispatch, LocalDispatch) for each in experts):
        return "experts are spread over processes"
    if not all(_is_plain(each) for each in experts):
        return "experts are quantized or have adapters"
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
        raise ValueError(f"static_steps: {obstacle}; leave it out")
    assert isinstance(model, TransformerPart)
    return StaticSteps(model)


def _is_plain(layer: MoE) -> bool:
    return type(layer.experts) is Experts and type(layer.shared_experts.w1) is Linear


class StaticSteps:
    """Runs the backbone on one token of each sequence, in buffers that keep shape and address.

    The buffers are copies of a cache's rows: they are loaded when another cache is decoded, or a row has grown beyond
    their capacity, and `write_back` copies them back before the cache itself is read.
    """

    def __init__(self, model: TransformerPart):
        self._model = model
        self._cache: KVCache | None = None
        """The cache whose rows are in the buffers, and not up to date itself."""
        self._buffers: StaticCache | None = None
        self._tokens_R1 = torch.empty(0)
        self._run: Callable[[], Tensor] = lambda: torch.empty(0)

    @property
    def nbytes(self) -> int:
        """Size of the buffers in bytes."""
        return 0 if self._buffers is None else self._buffers.nbytes

    @torch.no_grad()
    def advance(self, tokens_B1: Tensor, cache: KVCache) -> Tensor:
        """As `DecodableModel.advance` of one token per row; what it returns is valid until the next call.

        Raises:
            ValueError: the cache has no room.
        """
        if max(cache.lengths) >= cache.room:
            self.write_back()
        cache.make_room(1)
        if self._cache is not cache:
            self.write_back()
            self._load(cache)
        streams_B1SD = self.forward(tokens_B1)
        cache.count([1] * cache.rows)
        return streams_B1SD

    def forward(self, tokens_B1: Tensor) -> Tensor:
        """A step on the buffers alone: nothing of it depends on values on the host."""
        assert self._buffers is not None
        self._tokens_R1[: len(tokens_B1)] = tokens_B1
        streams_R1SD = self._run()
        self._buffers.positions_R1.add_(1)
        return streams_R1SD[: len(tokens_B1)]

    def addresses(self) -> list[int]:
        """Of all buffers, which a captured graph reads and writes."""
        assert self._buffers is not None
        return [x.data_ptr() for x in (self._tokens_R1, *self._buffers.tensors())]

    def write_back(self) -> None:
        """Bring the cache that was decoded up to date."""
        if self._cache is not None and self._buffers is not None:
            self._buffers.store(self._cache)
        self._cache = None

    def _load(self, cache: KVCache) -> None:
        rows = 1 << (cache.rows - 1).bit_length()
        if self._buffers is not None and (self._buffers.rows, self._buffers.room) == (rows, cache.room):
            self._buffers.load(cache)
        else:
            self._run = self._step
            self._buffers = None  # its memory is free before that of the next is taken
            self._buffers = StaticCache(cache, rows)
            self._buffers.load(cache)
            self._tokens_R1 = torch.zeros_like(self._buffers.positions_R1)
            self._run = captured_graph(self._step) if self._tokens_R1.is_cuda else self._step
        self._cache = cache

    def _step(self) -> Tensor:
        """The forward pass: a function of tensors that stay where they are."""
        assert self._buffers is not None
        with static_kernels():
            rows = TokenRows(self._tokens_R1, StaticLayout.of(self._buffers))
            return self._model.backbone(rows).streams_BTSD


def captured_graph(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A function that replays the work of a step on the GPU, and returns the same tensor each time.

    A step may run several times for the same token: it writes the same values to the same places.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
