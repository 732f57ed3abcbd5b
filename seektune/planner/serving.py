"""Memory and speed of decoding: what each process holds, which sequences fit, and bounds of tokens per second.

Every process has all weights but the experts of others, and sequences of its own; see `seektune.generate`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from seektune.generate.cache_limit import CacheLimit
from seektune.generate.capacity import prefix_share
from seektune.generate.limits import CHUNK, PREFIX_CACHE
from seektune.model.config import CSA, SLIDING, DeepseekV4Config
from seektune.planner.hardware import GIGA, Cluster
from seektune.planner.job import Weight, Weights
from seektune.planner.memory import LOWER, UPPER, bounds
from seektune.planner.messages import exchange

COPIES = 2
"""A batch's caches are copied when a sequence joins or ends."""


@dataclass(frozen=True)
class ServedWeights:
    """A model as processes hold it."""

    config: DeepseekV4Config
    weights: Weights
    itemsize: int
    """Bytes of an element of activations and caches."""
    longest: int
    """Maximum tokens of a sequence."""
    row_bytes: Callable[[int], int]
    """Bytes of the cache of a sequence that holds so many tokens."""
    token_bytes: float
    """Bytes of the cache of a further token, where caches have grown."""


@dataclass(frozen=True)
class ServingPlan:
    """Decoding on a cluster, one process per GPU."""

    model: ServedWeights
    cluster: Cluster
    ep_size: int
    """Processes over which the routed experts are spread."""
    gpu_memory_utilization: float = CacheLimit.gpu_memory_utilization
    """Share of a GPU's memory for weights and caches."""

    @cached_property
    def weight_bytes(self) -> int:
        """Weights and routing tables of a process; exact."""
        return sum(self._here(weight) for weight in self.model.weights.all)

    @property
    def token_bytes(self) -> float:
        """Cache of a further token, where caches have grown."""
        return self.model.token_bytes

    @cached_property
    def work_bytes(self) -> float:
        """What a forward pass of a chunk of prompts allocates, estimated: activations and dequantized weights."""
        config = self.model.config
        w = self.model.itemsize
        skew = bounds(UPPER)["skew"] if self.ep_size > 1 else 1
        heads = config.num_attention_heads * config.head_dim
        pair = 2 * config.hidden_size * w + 3 * config.moe_intermediate_size * w + 4 * config.hidden_size
        token = (3 * config.hc_mult * config.hidden_size + 3 * heads) * w + skew * config.num_experts_per_tok * pair
        largest = max((w * self._values(each) for each in self.model.weights.all if each.values), default=0)
        return CHUNK * token + largest

    def overhead(self, which: str) -> float:
        """Of a process: CUDA's context, buffers of NCCL, fragmentation."""
        share = bounds(which)
        groups = 2 if self.cluster.gpus > 1 else 0
        return share["context"] + groups * share["nccl_bytes"] + share["allocator_share"] * self.work_bytes

    @property
    def _for_caches(self) -> float:
        """Bytes of a process for all caches: what the limit leaves, and what is there; may be negative."""
        allowed = self.gpu_memory_utilization * self.cluster.memory
        return min(allowed, self.cluster.memory - self.work_bytes - self.overhead(UPPER)) - self.weight_bytes

    @property
    def prefix_bytes(self) -> int:
        """Of the prefix cache of a process."""
        return prefix_share(PREFIX_CACHE, max(int(self._for_caches), 0))

    @property
    def free(self) -> float:
        """Bytes of a process for the caches of running sequences, beside a prefix cache; may be negative."""
        return self._for_caches - self.prefix_bytes

    @property
    def fits(self) -> bool:
        """Whether a sequence of any length fits."""
        return self.sequences(1) > 0

    def sequences(self, length: int) -> int:
        """Sequences of that many tokens that run together, on all processes."""
        return max(int(self.free // (COPIES * self.model.row_bytes(length))), 0) * self.cluster.gpus

    def rates(self, running: int, length: int) -> tuple[float, float]:
        """Lower and upper bound of tokens per second of all processes, with `running` sequences on each.

        The upper bound moves the bytes of weights and caches once at the peak rates; the lower one also dequantizes,
        with the shares, latencies and routing of hardware.json.
        """
        tokens = running * self.cluster.gpus
        return tokens / self._slow(running, length), tokens / self._fast(running, length)

    def _fast(self, running: int, length: int) -> float:
        read = self._read(running, bounds(LOWER)["skew"])
        moved = sum(self._here(weight) * share for weight, share in read) + running * self._cache_read(length)
        sent = sum(self._sent(running)) * (self.ep_size - 1) / self.ep_size
        return moved / self.cluster.memory_rate + self._layers * sent / self.cluster.between(self.ep_size)

    def _slow(self, running: int, length: int) -> float:
        factors = self.cluster.factors
        skew = bounds(UPPER)["skew"] if self.ep_size > 1 else 1
        read = list(self._read(running, skew))
        moved = sum(self._here(weight) * share for weight, share in read) + running * self._cache_read(length)
        moved += sum(2 * self.model.itemsize * self._values(weight) * share for weight, share in read if weight.values)
        messages = sum(exchange(skew * size, self.ep_size, self.cluster, factors) for size in self._sent(running))
        return moved / (self.cluster.memory_rate * factors["memory"]) + self._layers * messages

    def _read(self, running: int, skew: float) -> Iterator[tuple[Weight, float]]:
        """The weights that a step reads, each with its share: of experts those that some token chose."""
        config = self.model.config
        pairs = skew * running * self.ep_size * config.num_experts_per_tok
        chosen = 1 - (1 - 1 / config.n_routed_experts) ** pairs
        for weight in self.model.weights.all:
            if not weight.buffer and not weight.name.startswith(("mtp.", "embed.")):
                yield weight, chosen if weight.expert else 1.0

    def _cache_read(self, length: int) -> float:
        """Bytes of a sequence's cache that a token reads."""
        config = self.model.config
        w = self.model.itemsize
        total = 0.0
        for layer in range(config.num_hidden_layers):
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

    @property
    def _layers(self) -> int:
        return self.model.config.num_hidden_layers

    def _here(self, weight: Weight) -> int:
        return weight.numel * weight.size // (self.ep_size if weight.expert else 1)

    def _values(self, weight: Weight) -> float:
        """Elements here to which a quantized weight is dequantized."""
        return weight.values * weight.numel / (self.ep_size if weight.expert else 1)

    def assumptions(self) -> list[str]:
        """What the numbers rest on."""
        factors = self.cluster.factors
        return [
            "weights and caches are counted exactly, as the loaders hold them; nothing was compared with a GPU",
            f"caches are copied when a sequence joins or ends: room for {COPIES} times their size; the sequences of a "
            "process all have the capacity of its longest, which is a power of two",
            f"weights and caches take at most {self.gpu_memory_utilization:.0%} of a GPU's memory "
            "(--gpu-memory-utilization)",
            f"a prefix cache of {self.prefix_bytes / GIGA:.2g} GB (--prefix-cache-gb)",
            f"prompts are read {CHUNK:,} tokens at a time: {self.work_bytes / GIGA:.1f} GB of activations and "
            "dequantized weights, estimated from shapes",
            f"CUDA's context, NCCL and fragmentation: {self.overhead(UPPER) / GIGA:.1f} GB",
            "upper bound of the speed: each byte of weights and caches is read once at the memory's full rate, "
            "messages are sent at the link's full rate, routing is even",
            f"lower bound: quantized weights are dequantized to memory and read again, {factors['memory']:.0%} of the "
            f"memory's rate, {factors['link']:.0%} of the link's, {factors['latency_s'] * 1e6:.0f} microseconds per "
            f"message, {factors['skew']:g} times the mean pairs on the busiest process",
            "not counted: launching kernels, sampling, the controller's messages between hosts, prompts read beside",
        ]
