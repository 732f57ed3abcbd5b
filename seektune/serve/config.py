"""What `seektune serve` is asked for: its options and their defaults."""

from dataclasses import dataclass, field

from seektune.serve.limits import Limits


@dataclass(frozen=True)
class ServeConfig:
    """Where a server listens and how it answers; vLLM's names where it has them."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    api_key: str | None = None
    """What clients must send as `Authorization: Bearer KEY`; None lets everybody in."""
    served_model_name: str | None = None
    """By which clients choose the model; None = as it was given here."""
    max_model_len: int | None = None
    """None = what the model is made for, at most that of `limits`."""
    limits: Limits = field(default_factory=Limits)
    shutdown_timeout: float = 30.0
    """Seconds that answers have to end after a signal."""
    thinking: bool = False
    speculative: bool = False
