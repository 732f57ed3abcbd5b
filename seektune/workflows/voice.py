"""What `generate` and `chat` share: a model that is ready to speak, and how it shall."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate.engine import Request
from seektune.generate.sample import DEFAULT, Sampling
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.workflows.prepare import DTYPES, choose_device


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
    dtype: str | None = None
    """`fp32` or `bf16`; None = fp32 on a CPU, bf16 on a GPU."""
    numerics: str = "plain"

    @property
    def mode(self) -> str:
        """Of the chat format."""
        return "thinking" if self.thinking else "chat"


class Voice:
    """A checkpoint, its tokenizer and a setting."""

    def __init__(self, name: str, setting: Setting):
        """Read a checkpoint folder in any of our formats, or a Hub id.

        Raises:
            ValueError: it cannot be read, or has no MTP block to speculate with.
        """
        device = choose_device()
        dtype = DTYPES[setting.dtype or ("fp32" if device.type == "cpu" else "bf16")]
        self.setting = setting
        self.model = DeepseekV4ForCausalLM.from_pretrained(name, dtype, setting.numerics, device)
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
