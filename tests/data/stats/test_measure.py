"""Statistics of made rows, counted by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seektune.data.datasets.chat import ChatConfig
from seektune.data.datasets.dataset import DataConfig, EncodeSettings
from seektune.data.datasets.preference import PreferenceConfig
from seektune.data.datasets.text import TextConfig
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowList
from seektune.data.stats.dataset_stats import DatasetStats, shared_starts
from seektune.data.stats.measure import count_tools, measure
from seektune.data.stats.scripts import count_scripts
from seektune.data.stats.summary import summarize
from seektune.data.store.prepare import prepare
from seektune.data.store.split import Stores
from tests.data.conversations.rows import CALLS, PLAIN, REASONED, answer, call, user

SETTINGS = EncodeSettings(2048)
CHAT = ChatConfig(kind="chat", path="rows")


Stats = Callable[..., DatasetStats]


@pytest.fixture
def stats_of(tmp_path: Path) -> Stats:
    """Prepares and measures rows."""

    def measured(section: DataConfig, *rows: dict[str, Any] | BadRow) -> DatasetStats:
        made = [
            row if isinstance(row, BadRow) else SourceRow.of(row, f"line {i}") for i, row in enumerate(rows, start=1)
        ]
        source = RowList("made rows", str(rows), made)
        stores: Stores = {"train": prepare(source, section.encoder(SETTINGS), tmp_path, "rows", strict=False)}
        stats = measure(section, stores, SETTINGS.tokenizer, lambda done, of: None)
        stats.tools = count_tools(section, source, stores)
        return stats

    return measured


def test_rows_examples_and_tokens_are_counted(stats_of: Stats) -> None:
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
    assert summary["bad"] == ["line 3: the row is empty: it has no column that is not null", "line 4: not JSON"]
    assert summary["repeated_tokens"] == shared_starts(examples[1:]) > 5
    assert summary["longest"][0] == {"tokens": len(examples[2].tokens), "name": "line 2, example 2 of 2"}
    assert summary["lengths"]["longest"] == len(examples[2].tokens)


def test_only_rows_within_the_limit_and_without_dropped_repeats_are_measured(stats_of: Stats) -> None:
    rows = [{"text": f"row {i // 2}"} for i in range(12)]
    keys = {"kind": "text", "path": "rows", "duplicates": "drop"}
    found = stats_of(TextConfig.model_validate({**keys, "limit": 3}), *rows)
    assert (found.rows, found.examples, found.repeated_rows) == (3, 3, 6)
    assert [name for _, name in found.longest] == ["line 1", "line 5", "line 9"]
    assert stats_of(TextConfig.model_validate(keys), *rows).rows == 6


def test_the_length_of_a_pair_is_that_of_both_answers(stats_of: Stats) -> None:
    section = PreferenceConfig(kind="preference", path="rows")
    rows = [{"prompt": "Name a colour.", "chosen": "red", "rejected": "seven " * size} for size in (1, 5)]
    encoded = section.encoder(SETTINGS).encode([SourceRow.of(row, "x") for row in rows])
    sizes = [sum(len(example.tokens) for example in pair) for pair in encoded]  # type: ignore[union-attr]
    found = stats_of(section, *rows)
    assert found.lengths.tolist() == sizes
    assert sum(found.counted) == sum(sum(example.taught) for pair in encoded for example in pair)  # type: ignore[union-attr]
    assert (found.examples, found.split_rows, found.repeated) == (2, 0, 0)
    assert summarize(found, sizes[1] - 1, {})["batch_lengths"][0]["overlong"] == 1


def test_tools_are_counted_by_name(stats_of: Stats) -> None:
    other = {"messages": [user("a"), answer(None, None, call("unknown", {}))], "tools": CALLS["tools"]}
    tools = summarize(stats_of(CHAT, CALLS, other), 512, {})["tools"]
    assert tools == {
        "described": {"weather": 2},
        "called": {"weather": 3, "unknown": 1},
        "not_described": {"unknown": 1},
    }


def test_empty_reasoning_is_counted(stats_of: Stats) -> None:
    thinking = ChatConfig(kind="chat", path="rows", thinking="thinking")
    assert stats_of(thinking, PLAIN, REASONED).empty_reasoning == 1
    assert stats_of(CHAT, PLAIN, REASONED).empty_reasoning == 0


def test_scripts_are_counted_without_control_tokens(stats_of: Stats) -> None:
    found = stats_of(CHAT, {"messages": [user("你好 Привет"), answer("да 12!")]})
    assert found.scripts == {"Han": 2, "Cyrillic": 8}
    assert found.taught_scripts == {"Cyrillic": 2}


def test_scripts_are_those_of_unicode() -> None:
    assert count_scripts("aé α я 你 あ ア 한 ا א ก 1.🐋 ") == {
        "Latin": 2, "Greek": 1, "Cyrillic": 1, "Han": 1, "Hiragana": 1, "Katakana": 1, "Hangul": 1, "Arabic": 1,
        "Hebrew": 1, "Thai": 1,
    }  # fmt: skip
    assert count_scripts("") == {}


def test_duplicates_are_counted_within_and_across_datasets(stats_of: Stats) -> None:
    rows = [{"text": text} for text in ("a", "b", "a", "a", "c")]
    found = stats_of(TextConfig(kind="text", path="rows"), *rows)
    other = np.array([SourceRow.of({"text": text}, "x").digest for text in ("c", "b", "z")], np.uint64)
    duplicates = summarize(found, 512, {"held out": other, "far": other[:0]})["duplicates"]
    assert duplicates == {"repeated_rows": 2, "also_in": {"held out": 2}}


def test_nothing_but_bad_rows_is_refused_with_the_first(stats_of: Stats) -> None:
    with pytest.raises(ValueError, match="no row gives an example; the first is bad: line 1: the row is empty"):
        stats_of(CHAT, {}, {"text": "a"})
