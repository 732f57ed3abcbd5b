"""TinyShakespeare comes with the package, and loses nothing as documents."""

import hashlib
import json
from pathlib import Path

from seektune.data.datasets.shakespeare import documents, tiny_shakespeare, write_shakespeare

TEXT = "\n\n".join(f"Speaker {number}:\nA line of a play, number {number}." for number in range(300)) + "\n"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
"""Of input.txt in char-rnn's data/tinyshakespeare."""


def test_the_text_is_the_one_that_others_use() -> None:
    text = tiny_shakespeare()
    assert len(text) == 1_115_394
    assert hashlib.sha256(text.encode()).hexdigest() == SHA256
    assert "\n\n".join(documents(text)) == text


def test_documents_end_with_a_speech_and_are_the_text() -> None:
    found = list(documents(TEXT, longest=1000))
    assert "\n\n".join(found) == TEXT
    assert max(map(len, found)) <= 1000
    assert all(each.startswith("Speaker") for each in found)


def test_every_tenth_document_is_held_out(tmp_path: Path) -> None:
    sizes = write_shakespeare(tmp_path, TEXT * 30)
    texts = {
        split: [json.loads(line)["text"] for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation")
    }
    every = list(documents(TEXT * 30))
    assert len(every) >= 20
    assert texts["validation"] == every[9::10]
    assert texts["train"] == [text for place, text in enumerate(every) if place % 10 != 9]
    assert sizes == (len(texts["train"]), len(texts["validation"]))
