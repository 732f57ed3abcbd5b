"""What `generate` and `chat` share: a model that is ready to speak, and how it shall."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate.request import Request
from seektune.generate.sample import DEFAULT, Sampling
from seektune.workflows.reading import AS_STORED, Reading


@dataclass(frozen=True)
class Setting:
    """How a model speaks."""

    max_new_tokens: int = 256
    sampling: Sampling = DEFAULT
    stops: tuple[str, ...] = ()
    seed: int = 0
    speculative: bool = False
    """Let the MTP block guess ahead."""
    thinking: bool = False
    """Conversations only: whether answers begin with reasoning."""
    reading: Reading = AS_STORED

    @property
    def mode(self) -> str:
        """Of the chat format."""
        return "thinking" if self.thinking else "chat"


class Voice:
    """A checkpoint, its tokenizer and a setting."""

    def __init__(self, name: str, setting: Setting):
        """Read a checkpoint.

        Raises:
            ValueError: as of `Reading.read`, or it has no MTP block to speculate with.
            OSError: as of `Reading.read`.
        """
        self.setting = setting
        self.model = setting.reading.read(name)
        self.tokenizer: Tokenizer = load_tokenizer(self.model.config.vocab_size)
        if setting.speculative and not self.model.mtp:
            raise ValueError(f"{name} has no MTP block; leave --speculative out")

    def text(self, prompt: str) -> list[int]:
        """Ids of a text that begins with BOS; control tokens in it are letters."""
        return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]

    def requests(self, ids: Sequence[int], samples: int = 1) -> list[Request]:
        """Several answers to the same prompt, whose seeds follow each other."""
        setting = self.setting
        eos = frozenset({self.tokenizer.eos_id})
        first = Request(ids, setting.max_new_tokens, setting.sampling, eos, setting.stops, setting.seed)
        return [replace(first, seed=setting.seed + i) for i in range(samples)]
