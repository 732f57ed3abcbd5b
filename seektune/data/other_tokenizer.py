"""Compare the tokenizer.json of a checkpoint folder with the tokenizer that is used in its place."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seektune.data.tokenizer import Tokenizer
from seektune.io.console import counted, listed
from seektune.io.json_file import read_json

FILE = "tokenizer.json"
SPLITTING = ("normalizer", "pre_tokenizer")
"""Keys that say how a text is cut before its parts become tokens."""


@dataclass(frozen=True)
class _Content:
    """What decides the ids of a text, whichever way it is spelled."""

    ids: dict[str, int]
    """The id of every token, added ones included."""
    merges: list[str]
    splitting: dict[str, Any]

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "_Content":
        """From the object in a tokenizer.json."""
        added = {token["content"]: int(token["id"]) for token in spec["added_tokens"]}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
        ids = {token: int(id) for token, id in spec["model"]["vocab"].items()}
        return cls(ids | added, merges, {key: spec.get(key) for key in SPLITTING})


def tokenizer_note(folder: Path, tokenizer: Tokenizer) -> str | None:
    """A note if the folder's own tokenizer gives a text other ids; None if it does not, or if there is none.

    Args:
        folder: of a checkpoint.
        tokenizer: the official one, or a reduced one, which is used whatever the folder holds.

    Raises:
        ValueError: the folder's tokenizer gives ids that are not below vocab_size, so the model has no row for them.
    """
    file = folder / FILE
    own = tokenizer.text.encode()
    if not file.is_file() or (file.stat().st_size == len(own) and file.read_bytes() == own):
        return None
    try:
        theirs = _Content.of(read_json(file))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return f"note: {file} cannot be read; DeepSeek-V4's own tokenizer is used"
    beyond = [token for token, id in theirs.ids.items() if not 0 <= id < tokenizer.vocab_size]
    if beyond:
        raise ValueError(
            f"{file} gives {_some(beyond)} ids outside of vocab_size ({tokenizer.vocab_size}), for which the model has "
            f"no embedding; remove {file}, and DeepSeek-V4's own tokenizer is used"
        )
    found = list(_differences(theirs, _Content.of(json.loads(tokenizer.text))))
    return f"note: {file} {', '.join(found)}; DeepSeek-V4's own tokenizer is used" if found else None


def _differences(theirs: _Content, ours: _Content) -> Iterator[str]:
    """The ends of sentences about a tokenizer that say how it differs from ours."""
    if more := [token for token in theirs.ids if token not in ours.ids]:
        yield f"adds {_some(more)}"
    if lost := [token for token in ours.ids if token not in theirs.ids]:
        yield f"lacks {_some(lost)}"
    if moved := [token for token, id in theirs.ids.items() if ours.ids.get(token, id) != id]:
        yield f"gives {_some(moved)} other ids"
    if theirs.merges != ours.merges:
        yield f"has other merges ({len(theirs.merges):,}, not {len(ours.merges):,})"
    for key in SPLITTING:
        if theirs.splitting[key] != ours.splitting[key]:
            yield f"cuts texts otherwise ({key})"


def _some(tokens: Sequence[str]) -> str:
    return f"{counted(len(tokens), 'token')} ({listed(tokens, 1)})"
