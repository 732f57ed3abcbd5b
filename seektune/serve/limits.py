"""Limits of a server."""

from dataclasses import dataclass

from seektune.generate.cache_limit import CacheLimit
from seektune.generate.limits import PREFIX_CACHE


@dataclass(frozen=True)
class Limits:
    """Bounds that keep the server alive under any client; named as in vLLM where it has them."""

    max_model_len: int = 32_768
    """Tokens of a prompt and its completion together; a million would let one client fill the memory."""
    max_num_seqs: int = 32
    """Maximum number of sequences decoded together."""
    gpu_memory_utilization: float = CacheLimit.gpu_memory_utilization
    """Share of a device's memory for weights and KV caches."""
    prefix_cache: int = PREFIX_CACHE
    """Bytes of each process and model for a prefix cache; 0 = none."""
    max_queued_requests: int = 256
    """Maximum number of waiting requests."""
    max_body: int = 8 * 2**20
    """Bytes of a request body."""
    request_timeout: float = 600.0
    """Seconds from a request's arrival to the end of its response, waiting included."""
    client_timeout: float = 60.0
    """Seconds that a client has to send its request, and to receive each part of the response."""
