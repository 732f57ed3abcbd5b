import json
import math
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from seektune.evaluate.perplexity import PerplexityTask, Text, read_texts, windows


@pytest.mark.parametrize(("length", "stride"), [(4, 4), (4, 1), (5, 3), (100, 7)])
def test_every_token_is_predicted_once_after_what_stands_before_it(length, stride):
    tokens = list(range(10, 33))
    seen = []
    for read, predicted in windows(tokens, 0, length, stride):
        together = [0, *tokens]
        place = together.index(predicted[0])
        assert together[place - len(read) : place] == read
        assert len(read) + len(predicted) - 1 <= length
        # only a text that has not begun yet leaves a window less to read
        assert len(read) + len(predicted) - 1 == min(length, place + len(predicted) - 1) or read == [0]
        seen += predicted
    assert seen == tokens


@pytest.mark.parametrize(("length", "stride", "batch_tokens"), [(8, 8, 20), (16, 4, 1), (1000, 1000, 8192)])
def test_the_loss_is_the_mean_over_all_tokens(bigram, tokenizer, length, stride, batch_tokens):
    texts = [Text("The man picks up a red bucket. 你好", "a"), Text("B", "b"), Text("and walks away, slowly", "c")]
    score = PerplexityTask(texts, length, stride).run(bigram, tokenizer, batch_tokens)
    log_p = torch.log_softmax(bigram.table.detach().double(), dim=-1)
    losses = []
    for text in texts:
        ids = [tokenizer.bos_id, *tokenizer.encode(text.text)]
        losses += [-float(log_p[a, b]) for a, b in pairwise(ids)]
    size = sum(len(text.text.encode()) for text in texts)
    loss, perplexity, bits = (score.metrics[name] for name in ("loss", "perplexity", "bits_per_byte"))
    assert loss.value == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)
    assert perplexity.value == pytest.approx(math.exp(loss.value))
    assert bits.value == pytest.approx(math.fsum(losses) / math.log(2) / size, rel=1e-5)
    assert tuple(score.counts[name] for name in ("tokens", "bytes", "documents")) == (len(losses), size, 3)
    assert (score.n == 3) == (length == 1000)
    assert perplexity.low <= perplexity.value <= perplexity.high
    assert set(json.loads(json.dumps(score.to_dict()))) == {
        *("loss", "perplexity", "bits_per_byte"),
        *("n", "tokens", "bytes", "documents", "windows", "length", "stride"),
        *("losses", "sizes"),
    }


def test_a_model_that_gives_no_number_is_named_with_the_text(bigram, tokenizer):
    with torch.no_grad():
        bigram.table[:] = torch.nan
    with pytest.raises(ArithmeticError, match=r"some\.txt: .* not a number"):
        PerplexityTask([Text("x y", "some.txt")], 8, 8).run(bigram, tokenizer, 100)


def test_two_models_are_compared_window_by_window(bigram, tokenizer):
    texts = [Text("The man picks up a red bucket and walks away.", "a")]
    first = PerplexityTask(texts, 4, 4).run(bigram, tokenizer, 100)
    with torch.no_grad():
        bigram.table.zero_()
    second = PerplexityTask(texts, 4, 4).run(bigram, tokenizer, 100)
    change = second.since(first)["loss"]
    assert change.difference == pytest.approx(second.metrics["loss"].value - first.metrics["loss"].value)
    assert change.low < change.difference < change.high


def test_texts_come_from_files_and_folders(tmp_path: Path):
    (tmp_path / "b.txt").write_text("\ufeffone\n\ntwo", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "three", "id": 7}\n\n{"text": ""}\n{"text": "four"}\n')
    (tmp_path / "c.md").write_text("no")
    read = read_texts(tmp_path)
    assert [text.text for text in read] == ["three", "four", "one\n\ntwo"]
    assert [text.name for text in read[1:]] == [f"{tmp_path / 'a.jsonl'} line 4", str(tmp_path / "b.txt")]
    assert read_texts(tmp_path / "b.txt") == read[2:]


def test_line_ends_are_bytes_of_the_text(tmp_path: Path):
    """A text is the same one in either kind of file."""
    (tmp_path / "a.txt").write_bytes(b"a b\r\nc d\r\n\re")
    (tmp_path / "b.jsonl").write_text('{"text": "a b\\r\\nc d\\r\\n\\re"}\n')
    first, second = read_texts(tmp_path)
    assert first.text == second.text
    assert len(first.text.encode()) == 12


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"a\.txt is a pipe"):
        read_texts(tmp_path)


def test_a_missing_part_of_numbered_files_is_named(tmp_path: Path):
    for name in ("a-00001-of-00002.txt", "a-00002-of-00002.txt", "b-0-of-1.txt", "c.txt"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert len(read_texts(tmp_path)) == 4
    (tmp_path / "a-00002-of-00002.txt").unlink()
    with pytest.raises(ValueError, match=r"a-00001-of-00002\.txt is one of 2 by its name, but number 0 is missing"):
        read_texts(tmp_path)
    assert len(read_texts(tmp_path / "a-00001-of-00002.txt")) == 1


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.md", "x", "perplexity reads .txt and .jsonl files"),
        ("a.txt", "", "holds no text"),
        ("a.txt", b"\xff", "not UTF-8 text"),
        ("a.jsonl", "{", "line 1: not JSON"),
        ("a.jsonl", '{"text": "x"}\n[1]', "line 2: must be a JSON object, not"),
        ("a.jsonl", '{"text": 3}', "line 1: needs the key text"),
        ("a.jsonl", '{"text": "\\ud800"}', "line 1: a text holds half of a surrogate pair"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str | bytes, complaint: str):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=complaint) as found:
        read_texts(file)
    assert str(found.value).startswith(str(file))
    with pytest.raises(ValueError, match=r"nothing\.txt does not exist; perplexity reads"):
        read_texts(tmp_path / "nothing.txt")
