"""Documents are rearranged at the rate and by the seed that is asked for, and say the same as before."""

from pathlib import Path

import pytest

from seektune.data.chat_format.pieces import ChatText
from seektune.data.config import BatchConfig
from seektune.data.conversations.fill_in_middle import BEGIN, END, HOLE, FillInMiddle
from seektune.data.conversations.plain_text import document_text
from seektune.data.datasets.dataset import DataCache, EncodeSettings
from seektune.data.datasets.text import DocumentTexts, TextConfig
from seektune.data.examples import ExampleList, Examples
from seektune.data.store.split import SPLITS, examples_of, prepare_dataset
from seektune.data.streaming.row_stream import ReaderNumber, RowStream
from seektune.data.tokenizer import BOS, EOS, load_tokenizer
from seektune.io.jsonl import as_line
from seektune.run.streams import held_out_rows, stream_of

TEXTS = [f"document {number}: " + "so much depends upon a red wheel barrow " * 3 for number in range(400)]


def rearranged(fill: FillInMiddle, text: str) -> str:
    return fill.rearranged(document_text(text, "error"), text).text


def restored(text: str) -> str:
    """The document that a rearranged one says."""
    body = text.removeprefix(BOS).removesuffix(EOS).removeprefix(BEGIN)
    before, rest = body.split(HOLE)
    suffix, after = rest.split(END)
    return before + after + suffix


def test_nothing_is_lost_in_either_order() -> None:
    for share in (0.0, 1.0):
        found = [rearranged(FillInMiddle(1.0, share, 0), text) for text in TEXTS[:50]]
        assert [restored(each) for each in found] == TEXTS[:50]
        assert all(each.startswith(BOS + BEGIN) for each in found)
        assert all(each.startswith(BOS + BEGIN + HOLE) for each in found) == (share == 1.0)


def test_the_rate_and_the_share_are_those_of_the_documents() -> None:
    found = [rearranged(FillInMiddle(0.5, 0.5, 0), text) for text in TEXTS]
    changed = [each for each in found if BEGIN in each]
    suffix_first = [each for each in changed if BEGIN + HOLE in each]
    assert 0.42 < len(changed) / len(TEXTS) < 0.58
    assert 0.4 < len(suffix_first) / len(changed) < 0.6


def test_it_depends_on_the_text_and_the_seed_alone() -> None:
    one = [rearranged(FillInMiddle(0.5, 0.0, 0), text) for text in TEXTS]
    assert one == [rearranged(FillInMiddle(0.5, 0.0, 0), text) for text in reversed(TEXTS)][::-1]
    assert one != [rearranged(FillInMiddle(0.5, 0.0, 1), text) for text in TEXTS]


def test_all_but_the_first_token_is_taught_and_the_marks_are_control_tokens() -> None:
    tokenizer = load_tokenizer(322)
    example = FillInMiddle(1.0, 0.0, 0).rearranged(document_text("abc", "error"), "abc").example(tokenizer, "row")
    assert example.taught == [False] + [True] * (len(example.tokens) - 1)
    marks = [tokenizer.control_id(token) for token in (BEGIN, HOLE, END)]
    assert [token for token in example.tokens if token in marks] == marks


def test_a_text_that_spells_a_mark_is_plain_characters() -> None:
    tokenizer = load_tokenizer(322)
    text = f"say {HOLE} aloud"
    example = FillInMiddle(0.0, 0.0, 0).rearranged(document_text(text, "error"), text).example(tokenizer, "row")
    assert tokenizer.control_id(HOLE) not in example.tokens


@pytest.mark.parametrize("text", ["", "a"])
def test_short_texts_are_documents_too(text: str) -> None:
    found = FillInMiddle(1.0, 0.0, 0).rearranged(document_text(text, "error"), text)
    assert isinstance(found, ChatText)
    assert restored(found.text) == text


def test_what_was_prepared_without_it_is_still_found() -> None:
    assert repr(DocumentTexts()) == "DocumentTexts(columns={}, control_tokens='error')"
    assert "fill=FillInMiddle(rate=0.1" in repr(DocumentTexts(fill=FillInMiddle(0.1, 0.0, 0)))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_held_out_documents_stay_as_they_are(own: bool, stream: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(as_line({"text": text}) for text in TEXTS[:100]))
    (tmp_path / "b.jsonl").write_text("".join(as_line({"text": text}) for text in TEXTS[100:120]))
    held_out = str(tmp_path / "b.jsonl") if own else 0.2
    keys = {"path": str(tmp_path / "a.jsonl"), "validation": held_out, "fim_rate": 1.0, "stream": stream}
    section = TextConfig.model_validate({"kind": "text", **keys})
    settings = EncodeSettings(322)
    cache = DataCache(tmp_path, lambda note: None)
    batch = BatchConfig(global_size=1, length=2048)
    if stream:
        stream_of_rows = RowStream(stream_of(section, settings, cache), 0, ReaderNumber(0, 1, seed=0))
        training: Examples = ExampleList(stream_of_rows.examples(60, batch))
        kept: Examples = held_out_rows(section, settings, cache, batch, None)
    else:
        stores = prepare_dataset(section, settings, cache)
        training, kept = (examples_of(section, split, stores, batch).examples for split in SPLITS)
    begin = settings.tokenizer.control_id(BEGIN)
    assert all(begin in example.tokens for example in map(training.example, range(len(training))))
    assert len(kept) == 20 if own else 10 < len(kept) < 30
    assert not any(begin in example.tokens for example in map(kept.example, range(len(kept))))
