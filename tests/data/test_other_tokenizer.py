"""A folder's own tokenizer.json: the same in other words, another one, and one with ids that the model lacks."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seektune.data.other_tokenizer import tokenizer_note
from seektune.data.tokenizer import Tokenizer

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def note(tokenizer: Tokenizer, tmp_path: Path) -> Callable[[Change], str | None]:
    """The note about a changed copy of the tokenizer."""

    def of(change: Change) -> str | None:
        spec = json.loads(tokenizer.text)
        change(spec)
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
        return tokenizer_note(tmp_path, tokenizer)

    return of


def as_pairs(spec: dict[str, Any]) -> None:
    """As newer versions of the library write it."""
    spec["model"]["merges"] = [merge.split(" ") for merge in spec["model"]["merges"]]
    spec["model"]["ignore_merges"] = False
    spec["truncation"] = {"max_length": 512}


def test_no_file_and_the_same_in_other_words_need_no_note(tokenizer: Tokenizer, tmp_path: Path, note) -> None:
    assert tokenizer_note(tmp_path, tokenizer) is None
    assert note(lambda spec: None) is None
    assert note(as_pairs) is None


def swapped(spec: dict[str, Any]) -> None:
    vocab = spec["model"]["vocab"]
    first, second = list(vocab)[500:502]
    vocab |= {first: vocab[second], second: vocab[first]}


def renamed(spec: dict[str, Any]) -> None:
    spec["added_tokens"][-1]["content"] = "<|im_start|>"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swapped, r"gives 2 tokens \(.* and 1 more\) other ids; DeepSeek-V4's own"),
        (renamed, r"adds 1 token \(<\|im_start\|>\), lacks 1 token \(.*\); DeepSeek-V4's own"),
        (lambda spec: spec["model"]["merges"].pop(), r"has other merges \([\d,]+, not [\d,]+\); DeepSeek-V4's own"),
        (lambda spec: spec["model"]["merges"].reverse(), "has other merges"),
        (lambda spec: spec.update(normalizer={"type": "NFC"}), r"cuts texts otherwise \(normalizer\)"),
        (lambda spec: spec["pre_tokenizer"]["pretokenizers"].pop(0), r"cuts texts otherwise \(pre_tokenizer\)"),
        (lambda spec: spec.pop("added_tokens"), "cannot be read"),
        (lambda spec: spec["model"].update(vocab={"a": "x"}), "cannot be read"),
    ],
)
def test_another_tokenizer_is_noticed_with_what_differs(note, change: Change, said: str) -> None:
    found = note(change)
    assert found is not None
    assert "\n" not in found
    assert re.search(said, found), found


@pytest.mark.parametrize("id", [10**6, -1])
def test_ids_without_an_embedding_are_refused(note, tokenizer: Tokenizer, id: int) -> None:
    for change in (
        lambda spec: spec["added_tokens"].append({"content": "<|im_start|>", "id": id}),
        lambda spec: spec["model"]["vocab"].update({"<|im_start|>": id}),
    ):
        with pytest.raises(ValueError, match=rf"im_start.* ids outside of vocab_size .{tokenizer.vocab_size}"):
            note(change)
