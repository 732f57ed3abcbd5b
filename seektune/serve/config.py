"""Options of `seektune serve` and their defaults."""

from dataclasses import dataclass, field

from seektune.data.chat_format.choices import EncodingName
from seektune.serve.hosts import check_host_names
from seektune.serve.limits import Limits


@dataclass(frozen=True)
class ServeConfig:
    """Settings of a server; named as in vLLM where it has them.

    Raises:
        ValueError: no client could send the key, or a host name is none.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    """0 = any free port."""
    api_key: str | None = None
    """Clients must send it as `Authorization: Bearer KEY`; None = no key is required."""
    served_model_name: str | None = None
    """The model's name in the API; None = the name of its folder, or the Hub id."""
    max_model_len: int | None = None
    """None = the model's context length, at most that of `limits`."""
    limits: Limits = field(default_factory=Limits)
    shutdown_timeout: float = 30.0
    """Seconds that running responses have to finish after a signal."""
    thinking: bool = False
    encoding: EncodingName | None = None
    """Of chats; None = that of the checkpoint."""
    speculative: bool = False
    static_steps: bool = False
    """As of `DecodeEngine`."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the Host header may have beside those of a loopback address."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may use the API; `*` = any."""

    def __post_init__(self) -> None:
        key = self.api_key
        if key is not None and (not key.isprintable() or key != key.strip()):
            raise ValueError(
                "--api-key (SEEKTUNE_API_KEY) must be UTF-8 text without spaces at its ends or line breaks"
            )
        check_host_names(self.allowed_hosts)
