"""TinyShakespeare: the text is checked, comes from the first source that has it, and loses nothing as documents."""

import hashlib
import json
from pathlib import Path

import pytest

from seektune.data.datasets import shakespeare
from seektune.data.datasets.shakespeare import checked, documents, download, write_shakespeare
from tests.run_cli import seektune

TEXT = "\n\n".join(f"Speaker {number}:\nA line of a play, number {number}." for number in range(300)) + "\n"
SHA256 = hashlib.sha256(TEXT.encode()).hexdigest()


def unreachable() -> str:
    raise OSError("no route to host\nat all")


def test_the_first_source_with_the_right_text_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    sources = (("one", unreachable), ("two", lambda: TEXT + "more"), ("three", lambda: TEXT))
    assert download(sources, SHA256) == TEXT
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "TinyShakespeare: not from one: no route to host at all"
    assert said[1].startswith("TinyShakespeare: not from two: the text has sha256 ")


def test_without_a_source_the_error_says_what_to_do() -> None:
    with pytest.raises(OSError, match=r"no route to host at all.*name a copy of the text with --source FILE"):
        download((("one", unreachable),), SHA256)


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


def test_a_copy_of_another_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    done = seektune("data", "example", "plays", "--kind", "text", "--source", "text.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert f"the text has sha256 {SHA256}, not {shakespeare.SHA256}" in done.stderr
    assert not (tmp_path / "plays").exists()


def test_only_plays_have_a_source(tmp_path: Path) -> None:
    done = seektune("data", "example", "rows", "--source", "text.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert "--source is for --kind text" in done.stderr


def test_the_digest_is_that_of_the_text() -> None:
    file = Path(__file__).parents[4] / "shared" / "data" / "text" / "tinyshakespeare.txt"
    if not file.is_file():
        pytest.skip("the text is not here")
    assert len(checked(file.read_text(encoding="utf-8"))) == 1_115_394
