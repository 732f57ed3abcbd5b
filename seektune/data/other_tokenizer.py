"""Compare the tokenizer.json of a checkpoint folder with the tokenizer that is used in its place."""

import json
from pathlib import Path
from typing import Any

from seektune.data.tokenizer import Tokenizer
from seektune.io.json_file import read_json

FILE = "tokenizer.json"


def tokenizer_note(folder: Path, tokenizer: Tokenizer) -> str | None:
    """A note if the folder's own tokenizer gives tokens other ids; None if it does not, or if there is none.

    Args:
        folder: of a checkpoint.
        tokenizer: the official one, or a reduced one, which is used whatever the folder holds.
    """
    file = folder / FILE
    if not file.is_file() or file.read_bytes() == tokenizer.text.encode():
        return None
    try:
        same = _content(read_json(file)) == _content(json.loads(tokenizer.text))
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"note: {file} cannot be read; DeepSeek-V4's own tokenizer is used"
    return None if same else f"note: {file} gives tokens other ids than DeepSeek-V4's own tokenizer, which is used here"


def _content(spec: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """The id of every token, and the merges in order, whichever way they are spelled."""
    added = {token["content"]: token["id"] for token in spec["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    return spec["model"]["vocab"] | added, merges
