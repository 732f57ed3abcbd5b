"""Memory and speed of a process of one pipeline stage that decodes."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from seektune.generate.capacity import padded_rows, prefix_share
from seektune.generate.limits import CHUNK, PREFIX_CACHE
from seektune.model.config import CSA, SLIDING, DeepseekV4Config
from seektune.parallel.dims import ParallelDims
from seektune.planner.hardware import Cluster
from seektune.planner.job import Weight
from seektune.planner.memory import LOWER, UPPER, bounds
from seektune.planner.messages import exchange


@dataclass(frozen=True)
class ServedWeights:
    """What a pipeline stage has of a model: all of it where there is one stage."""

    config: DeepseekV4Config
    weights: tuple[Weight, ...]
    itemsize: int
    """Bytes of an element of activations and caches."""
    layers: range
    sends: bool
    """Whether another stage follows."""
    row_bytes: Callable[[int], int]
    """Bytes of the cache of a sequence that holds so many tokens."""
    token_bytes: float
    """Bytes of the cache of a further token, where caches have grown."""


@dataclass(frozen=True)
class ServingStage:
    """A process of a stage; the others of its stage hold and do as much."""

    model: ServedWeights
    cluster: Cluster
    dims: ParallelDims
    gpu_memory_utilization: float
    static_steps: bool = False
    """Whether decode steps run on copies of the caches, of which a process alone has them."""

    @cached_property
    def weight_bytes(self) -> int:
        """Weights and routing tables of a process; exact."""
        return sum(self._here(weight) for weight in self.model.weights)

    @cached_property
    def work_bytes(self) -> float:
        """What a forward pass of a chunk of prompts allocates, estimated: activations and dequantized weights."""
        config = self.model.config
        w = self.model.itemsize
        skew = bounds(UPPER, self.cluster.factors)["skew"] if self._ep_size > 1 else 1
        heads = config.num_attention_heads * config.head_dim
        pair = 2 * config.hidden_size * w + 3 * config.moe_intermediate_size * w + 4 * config.hidden_size
        token = (3 * config.hc_mult * config.hidden_size + 3 * heads) * w + skew * config.num_experts_per_tok * pair
        largest = max((w * self._values(each) for each in self.model.weights if each.values), default=0)
        return CHUNK * token + largest

    def overhead(self, which: str) -> float:
        """Of a process: CUDA's context, buffers of NCCL, fragmentation."""
        share = bounds(which, self.cluster.factors)
        groups = (2 if self.dims.stage_size > 1 else 0) + int(self.dims.pp_size > 1)
        return share["context"] + groups * share["nccl_bytes"] + share["allocator_share"] * self.work_bytes

    @property
    def _for_caches(self) -> float:
        """Bytes of a process for all caches: what the limit leaves, and what is there; may be negative."""
        allowed = self.gpu_memory_utilization * self.cluster.memory
        return min(allowed, self.cluster.memory - self.work_bytes - self.overhead(UPPER)) - self.weight_bytes

    @property
    def prefix_bytes(self) -> int:
        """Of the prefix cache of a process; a pipeline has none."""
        return prefix_share(PREFIX_CACHE if self.dims.pp_size == 1 else 0, max(int(self._for_caches), 0))

    @property
    def free(self) -> float:
        """Bytes of a process for the caches of running sequences, beside a prefix cache; may be negative."""
        return self._for_caches - self.prefix_bytes

    def sequences(self, length: int) -> int:
        """Sequences of that many tokens that run together on a process.

        They are spread evenly over as many groups as there are stages. The cache of one group is copied at a time;
        static steps have a copy of a power of two of rows.
        """
        groups = self.dims.pp_size
        # a last stage may have the head alone
        caches = max(int(self.free // max(self.model.row_bytes(length), 1)), 0)
        if not self.static_steps:
            return caches * groups // (groups + 1)
        return bisect_right(range(1, caches + 1), caches, key=lambda rows: 2 * rows + padded_rows(rows))

    def fast(self, running: int, length: int) -> float:
        """Lower bound of the seconds of a step of `running` sequences."""
        if running == 0:
            return 0.0
        ep = self._ep_size
        read = self._read(running, bounds(LOWER, self.cluster.factors)["skew"])
        moved = sum(self._here(weight) * share for weight, share in read) + running * self._cache_read(length)
        sent = sum(self._sent(running)) * (ep - 1) / ep
        streams = self._streams(running) / self._between_stages
        return moved / self.cluster.memory_rate + self._layers * sent / self.cluster.between(ep) + streams

    def slow(self, running: int, length: int) -> float:
        """Upper bound of the seconds of a step of `running` sequences, with the assumptions of hardware.json."""
        if running == 0:
            return 0.0
        factors = self.cluster.factors
        skew = bounds(UPPER, self.cluster.factors)["skew"] if self._ep_size > 1 else 1
        read = list(self._read(running, skew))
        moved = sum(self._here(weight) * share for weight, share in read) + running * self._cache_read(length)
        moved += sum(2 * self.model.itemsize * self._values(weight) * share for weight, share in read if weight.values)
        messages = sum(exchange(skew * size, self._ep_size, self.cluster, factors) for size in self._sent(running))
        streams = self._streams(running) / (self._between_stages * factors["link"])
        latency = factors["latency_s"] * self.model.sends
        return moved / (self.cluster.memory_rate * factors["memory"]) + self._layers * messages + streams + latency

    def _read(self, running: int, skew: float) -> Iterator[tuple[Weight, float]]:
        """The weights that a step reads, each with its share: of experts those that some token chose."""
        config = self.model.config
        pairs = skew * running * self._ep_size * config.num_experts_per_tok
        chosen = 1 - (1 - 1 / config.n_routed_experts) ** pairs
        for weight in self.model.weights:
            if not weight.buffer and not weight.name.startswith(("mtp.", "embed.")):
                yield weight, chosen if weight.expert else 1.0

    def _cache_read(self, length: int) -> float:
        """Bytes of a sequence's cache that a token reads."""
        config = self.model.config
        w = self.model.itemsize
        total = 0.0
        for layer in self.model.layers:
            ratio = config.ratio(layer)
            entries = 0 if ratio == SLIDING else length // ratio
            if ratio == CSA and entries > config.index_topk:
                total += entries * config.index_head_dim * w
                entries = config.index_topk
            total += (min(length, config.sliding_window) + entries) * config.head_dim * w
        return total

    def _sent(self, running: int) -> tuple[float, float]:
        """Bytes of a layer's messages of a process: tokens in the model's dtype, outputs in fp32."""
        pairs = running * self.model.config.num_experts_per_tok * self.model.config.hidden_size
        return pairs * self.model.itemsize, pairs * 4.0

    def _streams(self, running: int) -> int:
        """Bytes that go to the next stage in a step."""
        config = self.model.config
        return running * config.hc_mult * config.hidden_size * self.model.itemsize * self.model.sends

    @property
    def _between_stages(self) -> float:
        return self.cluster.between(self.dims.pp_size, self.dims.stage_size)

    @property
    def _ep_size(self) -> int:
        return self.dims.ep_size

    @property
    def _layers(self) -> int:
        return len(self.model.layers)

    def _here(self, weight: Weight) -> int:
        return weight.numel * weight.size // (self._ep_size if weight.expert else 1)

    def _values(self, weight: Weight) -> float:
        """Elements here to which a quantized weight is dequantized."""
        return weight.values * weight.numel / (self._ep_size if weight.expert else 1)
