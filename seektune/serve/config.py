"""Options of `seektune serve` and their defaults."""

from dataclasses import dataclass, field

from seektune.serve.limits import Limits


@dataclass(frozen=True)
class ServeConfig:
    """Settings of a server; named as in vLLM where it has them."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 = any free port."""
    api_key: str | None = None
    """Clients must send it as `Authorization: Bearer KEY`; None = no key is required."""
    served_model_name: str | None = None
    """The model's name in the API; None = the MODEL argument."""
    max_model_len: int | None = None
    """None = the model's context length, at most that of `limits`."""
    limits: Limits = field(default_factory=Limits)
    shutdown_timeout: float = 30.0
    """Seconds that running responses have to finish after a signal."""
    thinking: bool = False
    speculative: bool = False
