"""Loading a checkpoint and options of generation, shared by `generate`, `chat`, `eval` and `serve`."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from seektune.checkpoint import locate
from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.encode import render_chat_prompt
from seektune.data.chat_format.encodings import find_encoding
from seektune.data.other_tokenizer import tokenizer_note
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate.answer_grammar import AnswerRules, answer_grammar, json_rules, regex_rules
from seektune.generate.cache_limit import WHOLE_DEVICE, CacheLimit
from seektune.generate.engine import DecodeEngine, Decodes
from seektune.generate.grammar import Grammar, compile_grammar
from seektune.generate.mesh import DecodeMesh
from seektune.generate.processes import ONE_PROCESS, DecodeProcesses
from seektune.generate.request import Request
from seektune.generate.sampling_params import DEFAULT, Sampling
from seektune.lora.files import load_adapter
from seektune.lora.format import read_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.choices import DtypeName, NumericsName
from seektune.model.config import DeepseekV4Config
from seektune.model.device import DTYPES, choose_device
from seektune.model.transformer import TransformerPart
from seektune.model.variants import encoding_of
from seektune.parallel.load import ModelPart, load_spread


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
        if drafter:
            _check_drafter(name, model)
        if self.adapter is not None:
            load_adapter(model, self.adapter)
        return model

    def read_spread(self, name: str, processes: DecodeProcesses, drafter: bool = False) -> DecodeMesh:
        """Load a model on all processes, as `read` does on one. Collective; errors as `read_part`."""
        return DecodeMesh(self.read_part(name, processes, drafter).model, processes.ranks())

    def read_part(self, name: str, processes: DecodeProcesses, drafter: bool = False) -> ModelPart:
        """Load the part of a checkpoint that this process holds. Collective.

        Raises:
            ValueError, OSError: as `read`, on all processes, or the layout does not fit the model.
        """
        self.check()
        mesh = processes.mesh(DeepseekV4Config.from_pretrained(locate(name)))
        dtype = DTYPES[self.dtype or ("fp32" if mesh.device.type == "cpu" else "bf16")]
        loaded: list[ModelPart] = []
        spread = partial(load_spread, name, dtype, self.numerics, mesh, self.quantized, self.adapter, drafter)

        def load() -> None:
            loaded.append(spread())
            if drafter:
                _check_drafter(name, loaded[0].model)

        mesh.ranks.each(load)
        return loaded[0]

    def check(self) -> None:
        """Check that the adapter can be read, before weights are, and that `serving` has weights to apply to.

        Raises:
            ValueError: it cannot, or it has none.
        """
        if self.numerics == "serving" and not self.quantized:
            raise ValueError("--numerics serving rounds inputs of quantized weights: add --quantized, or use released")
        if self.adapter is None:
            return
        if not self.adapter.is_dir():
            raise ValueError(f"--adapter {self.adapter}: no such folder")
        read_adapter(self.adapter)


AS_STORED = LoadOptions()


def _check_drafter(name: str, model: TransformerPart) -> None:
    if not len(model.mtp):
        raise ValueError(
            f"{name} has no drafter (neither an MTP block nor DSpark stages), "
            "which --speculative and --task drafter need"
        )


def note_other_tokenizer(name: str, tokenizer: Tokenizer) -> None:
    """Say on standard error if a checkpoint has a tokenizer.json of its own, which is not used."""
    if (note := tokenizer_note(locate(name), tokenizer)) is not None:
        print(note, file=sys.stderr)


def note_cache_room(
    model: Decodes, memory: CacheLimit = WHOLE_DEVICE, speculative: bool = False, static_steps: bool = False
) -> None:
    """Say on standard error how many tokens of context fit; rank 0 of a mesh calls it in `lead`."""
    longest = model.config.max_position_embeddings
    engine = DecodeEngine(model, (), speculative, longest, memory=memory, static_steps=static_steps)
    print(f"KV cache: {engine.room}", file=sys.stderr)


def choose_encoding(name: str, chosen: EncodingName | None) -> EncodingName:
    """The chosen encoding of chats, or that of a checkpoint.

    Raises:
        ValueError: the checkpoint has no readable config.json.
        OSError: as `locate`.
    """
    return chosen or encoding_of(DeepseekV4Config.from_pretrained(locate(name)))


@dataclass(frozen=True)
class GenerateOptions:
    """Options of generation."""

    max_new_tokens: int = 256
    sampling: Sampling = DEFAULT
    stops: tuple[str, ...] = ()
    seed: int = 0
    speculative: bool = False
    """Let the MTP block or the DSpark stages draft tokens."""
    static_steps: bool = field(default=False, repr=False)
    """As of `DecodeEngine`; it does not change completions, up to rounding."""
    thinking: bool = False
    """Chats only: whether responses begin with reasoning."""
    reading: LoadOptions = AS_STORED
    reasoning_effort: str | None = None
    """Chats with reasoning only; None = the encoding's default."""
    encoding: EncodingName | None = None
    """Of chats; None = that of the checkpoint."""
    json_schema: Mapping[str, Any] | None = None
    """Completions are JSON that is valid against it; the prompts of chats describe it."""
    regex: str | None = None
    """Completions match it as a whole."""
    memory: CacheLimit = field(default=WHOLE_DEVICE, repr=False)
    """Of KV caches; it does not change completions."""

    def answer_rules(self) -> AnswerRules | None:
        """What completions have to follow; None for any text.

        Raises:
            ValueError: both a schema and a regular expression are given, or one of them cannot be followed.
        """
        if self.json_schema is not None and self.regex is not None:
            raise ValueError("--json-schema and --regex exclude each other; give one")
        if self.json_schema is not None:
            return json_rules(self.json_schema)
        return None if self.regex is None else regex_rules(self.regex)

    @property
    def mode(self) -> str:
        """The mode of the chat format."""
        return "thinking" if self.thinking else "chat"


class Session:
    """A loaded checkpoint, its tokenizer and options of generation."""

    def __init__(self, name: str, setting: GenerateOptions, processes: DecodeProcesses = ONE_PROCESS):
        """Load a checkpoint; collective if there are several processes.

        Raises:
            ValueError: as `LoadOptions.read`, the encoding lacks the effort, or what completions follow is refused.
            OSError: as `LoadOptions.read`.
        """
        self.setting = setting
        self.encoding = choose_encoding(name, setting.encoding)
        find_encoding(self.encoding).effort(setting.reasoning_effort)
        processes.check_static_steps(setting.static_steps, setting.speculative, setting.reading.numerics)
        self._vocab_size = DeepseekV4Config.from_pretrained(locate(name)).vocab_size
        self.tokenizer: Tokenizer = load_tokenizer(self._vocab_size)
        self._grammar(thinking=setting.thinking)  # a mistake is reported before weights are loaded
        self.model: Decodes
        if processes.slot.world == 1:
            self.model = setting.reading.read(name, setting.speculative)
        else:
            processes.refuse_with_pipeline(setting.speculative, "--speculative")
            self.model = setting.reading.read_spread(name, processes, setting.speculative)
        if processes.is_main:
            note_other_tokenizer(name, self.tokenizer)

    def lead(self, body: Callable[[], None]) -> None:
        """Run `body`, which decodes; of several processes rank 0 runs it, and the others follow."""
        if not isinstance(self.model, DecodeMesh):
            body()
        elif self.model.ranks.rank == 0:
            self.model.lead(body)
        else:
            self.model.follow()

    def text(self, prompt: str) -> list[int]:
        """Ids of a text prompt, with BOS; control tokens in it are plain characters."""
        return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]

    def chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of a chat's prompt; control tokens in messages are plain characters.

        Raises:
            ValueError: as `render_chat_prompt`.
        """
        setting = self.setting
        effort = setting.reasoning_effort
        prompt = render_chat_prompt(messages, tools, setting.mode, effort, self.encoding, setting.json_schema)
        return prompt.ids(self.tokenizer)

    def requests(self, ids: Sequence[int], samples: int = 1, is_chat: bool = False) -> list[Request]:
        """Requests for several completions of a prompt, with consecutive seeds."""
        setting = self.setting
        eos = frozenset({self.tokenizer.eos_id})
        first = Request(ids, setting.max_new_tokens, setting.sampling, eos, setting.stops, setting.seed)
        first = replace(first, grammar=self._grammar(is_chat and setting.thinking))
        return [replace(first, seed=setting.seed + i) for i in range(samples)]

    def _grammar(self, thinking: bool) -> Grammar | None:
        """What completions follow; None for any text."""
        rules = self.setting.answer_rules()
        if rules is None:
            return None
        flag = "--regex" if self.setting.json_schema is None else "--json-schema"
        try:
            return compile_grammar(answer_grammar([rules], self.tokenizer, thinking), self._vocab_size)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
