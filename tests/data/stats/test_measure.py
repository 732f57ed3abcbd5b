"""Statistics of made rows, counted by hand."""

from typing import Any

import pytest

from seektune.data.datasets.chat import ChatConfig
from seektune.data.datasets.dataset import DataConfig, EncodeSettings
from seektune.data.datasets.text import TextConfig
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowList
from seektune.data.stats import measure as measuring
from seektune.data.stats.dataset_stats import DatasetStats, shared_starts
from seektune.data.stats.measure import measure
from seektune.data.stats.scripts import count_scripts
from seektune.data.stats.summary import summarize
from tests.data.conversations.rows import CALLS, PLAIN, REASONED, answer, call, user

SETTINGS = EncodeSettings(2048)
CHAT = ChatConfig(kind="chat", path="rows")


def stats_of(section: DataConfig, *rows: dict[str, Any] | BadRow) -> DatasetStats:
    made = [row if isinstance(row, BadRow) else SourceRow.of(row, f"line {i}") for i, row in enumerate(rows, start=1)]
    return measure(section, RowList("made rows", "1", made), SETTINGS, lambda done, of: None)


def test_rows_examples_and_tokens_are_counted() -> None:
    found = stats_of(CHAT, PLAIN, REASONED, {"messages": None}, BadRow("line 4", "not JSON"))
    examples = [
        example
        for row in (PLAIN, REASONED)
        for example in CHAT.encoder(SETTINGS).encode([SourceRow.of(row, "x")])[0]  # type: ignore[union-attr]
    ]
    summary = summarize(found, 512, {})
    assert (summary["rows"], summary["examples"], summary["bad_rows"], summary["split_rows"]) == (4, 3, 2, 1)
    assert summary["tokens"] == sum(len(example.tokens) for example in examples)
    assert summary["taught_tokens"] == sum(sum(example.taught) for example in examples)
    assert summary["bad"] == ["line 4: not JSON", "line 3: the row is empty: it has no column that is not null"]
    assert summary["repeated_tokens"] == shared_starts(examples[1:]) > 5
    assert summary["longest"][0] == {"tokens": len(examples[2].tokens), "name": "line 2, example 2 of 2"}
    assert summary["lengths"]["longest"] == len(examples[2].tokens)


def test_rows_of_several_chunks_are_all_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"row {i}"} for i in range(7)]
    section = TextConfig(kind="text", path="rows")
    whole = summarize(stats_of(section, *rows), 512, {})
    monkeypatch.setattr(measuring, "CHUNK", 3)
    assert summarize(stats_of(section, *rows), 512, {}) == whole
    assert whole["rows"] == 7


def test_tools_are_counted_by_name() -> None:
    other = {"messages": [user("a"), answer(None, None, call("unknown", {}))], "tools": CALLS["tools"]}
    tools = summarize(stats_of(CHAT, CALLS, other), 512, {})["tools"]
    assert tools == {
        "described": {"weather": 2},
        "called": {"weather": 3, "unknown": 1},
        "not_described": {"unknown": 1},
    }


def test_empty_reasoning_is_counted() -> None:
    thinking = ChatConfig(kind="chat", path="rows", thinking="thinking")
    assert stats_of(thinking, PLAIN, REASONED).empty_reasoning == 1
    assert stats_of(CHAT, PLAIN, REASONED).empty_reasoning == 0


def test_scripts_are_counted_without_control_tokens() -> None:
    found = stats_of(CHAT, {"messages": [user("你好 Привет"), answer("да 12!")]})
    assert found.scripts == {"Han": 2, "Cyrillic": 8}
    assert found.taught_scripts == {"Cyrillic": 2}


def test_scripts_are_those_of_unicode() -> None:
    assert count_scripts("aé α я 你 あ ア 한 ا א ก 1.🐋 ") == {
        "Latin": 2, "Greek": 1, "Cyrillic": 1, "Han": 1, "Hiragana": 1, "Katakana": 1, "Hangul": 1, "Arabic": 1,
        "Hebrew": 1, "Thai": 1,
    }  # fmt: skip
    assert count_scripts("") == {}


def test_duplicates_are_counted_within_and_across_datasets() -> None:
    rows = [{"text": text} for text in ("a", "b", "a", "a", "c")]
    found = stats_of(TextConfig(kind="text", path="rows"), *rows)
    other = [SourceRow.of({"text": text}, "x").digest for text in ("c", "b", "z")]
    duplicates = summarize(found, 512, {"held out": other, "far": []})["duplicates"]
    assert duplicates == {"repeated_rows": 2, "also_in": {"held out": 2}}


def test_nothing_but_bad_rows_has_a_summary() -> None:
    summary = summarize(stats_of(CHAT, {}, {"text": "a"}), 512, {})
    assert (summary["rows"], summary["examples"], summary["bad_rows"], summary["batch_lengths"]) == (2, 0, 2, [])
