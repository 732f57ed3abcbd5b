"""What a server accepts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds within which it stays alive whoever asks; vLLM's names where it has them."""

    max_model_len: int = 32_768
    """Tokens of a prompt and its answer together; a million would let one client fill the memory."""
    max_num_seqs: int = 32
    """Answers that grow at a time."""
    max_queued_requests: int = 256
    """Requests that wait for room among them."""
    max_body: int = 8 * 2**20
    """Bytes of a request."""
    request_timeout: float = 600.0
    """Seconds from a request's arrival to the end of its answer, waiting included."""
    patience: float = 60.0
    """Seconds in which a client must have sent its request, and taken each part of the answer."""
