"""Loading a checkpoint and options of generation, shared by `generate`, `chat`, `eval` and `serve`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from seektune.checkpoint import locate
from seektune.data.other_tokenizer import tokenizer_note
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate.request import Request
from seektune.generate.sampling_params import DEFAULT, Sampling
from seektune.lora.files import load_adapter
from seektune.lora.format import read_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.choices import DtypeName, NumericsName
from seektune.model.device import DTYPES, choose_device


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is loaded."""

    dtype: DtypeName | None = None
    """None = fp32 on a CPU, bf16 on a GPU."""
    numerics: NumericsName = "plain"
    quantized: bool = False
    """Keep FP4 and FP8 weights quantized; they are dequantized while in use."""
    adapter: Path | None = None
    """Folder of an adapter to apply."""

    def read(self, name: str, drafter: bool = False) -> DeepseekV4ForCausalLM:
        """Load the model of a checkpoint folder in any of our formats, or of a Hub id; with `drafter` for drafting.

        Raises:
            ValueError: it or the adapter cannot be read, the adapter does not fit the model, or there is no drafter.
            OSError: a file cannot be read.
        """
        self.check()
        device = choose_device()
        dtype = DTYPES[self.dtype or ("fp32" if device.type == "cpu" else "bf16")]
        model = DeepseekV4ForCausalLM.from_pretrained(
            name, dtype, self.numerics, device, self.quantized, drafter=drafter
        )
        if drafter and not len(model.mtp):
            raise ValueError(
                f"{name} has no drafter (neither an MTP block nor DSpark stages), "
                "which --speculative and --task drafter need"
            )
        if self.adapter is not None:
            load_adapter(model, self.adapter)
        return model

    def check(self) -> None:
        """Check that the adapter can be read, before weights are.

        Raises:
            ValueError: it cannot.
        """
        if self.adapter is None:
            return
        if not self.adapter.is_dir():
            raise ValueError(f"--adapter {self.adapter}: no such folder")
        read_adapter(self.adapter)


AS_STORED = LoadOptions()


def note_other_tokenizer(name: str, tokenizer: Tokenizer) -> None:
    """Say on standard error if a checkpoint has a tokenizer.json of its own, which is not used."""
    if (note := tokenizer_note(locate(name), tokenizer)) is not None:
        print(note, file=sys.stderr)


@dataclass(frozen=True)
class GenerateOptions:
    """Options of generation."""

    max_new_tokens: int = 256
    sampling: Sampling = DEFAULT
    stops: tuple[str, ...] = ()
    seed: int = 0
    speculative: bool = False
    """Let the MTP block or the DSpark stages draft tokens."""
    thinking: bool = False
    """Chats only: whether responses begin with reasoning."""
    reading: LoadOptions = AS_STORED

    @property
    def mode(self) -> str:
        """The mode of the chat format."""
        return "thinking" if self.thinking else "chat"


class Session:
    """A loaded checkpoint, its tokenizer and options of generation."""

    def __init__(self, name: str, setting: GenerateOptions):
        """Load a checkpoint.

        Raises:
            ValueError: as `LoadOptions.read`.
            OSError: as `LoadOptions.read`.
        """
        self.setting = setting
        self.model = setting.reading.read(name, setting.speculative)
        self.tokenizer: Tokenizer = load_tokenizer(self.model.config.vocab_size)
        note_other_tokenizer(name, self.tokenizer)

    def text(self, prompt: str) -> list[int]:
        """Ids of a text prompt, with BOS; control tokens in it are plain characters."""
        return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]

    def requests(self, ids: Sequence[int], samples: int = 1) -> list[Request]:
        """Requests for several completions of a prompt, with consecutive seeds."""
        setting = self.setting
        eos = frozenset({self.tokenizer.eos_id})
        first = Request(ids, setting.max_new_tokens, setting.sampling, eos, setting.stops, setting.seed)
        return [replace(first, seed=setting.seed + i) for i in range(samples)]
