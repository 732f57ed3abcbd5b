"""Which parts of a long document a preview shows."""

import io

from rich.console import Console

from seektune.data.tokenizer import load_tokenizer
from seektune.workflows.shown_tokens import AROUND, LONG, MOST_EDGES, show_document, shown_parts


def test_a_short_document_is_shown_whole() -> None:
    assert shown_parts([True] * LONG, None) == [(0, LONG)]


def test_of_a_long_one_both_ends_the_cut_and_the_edges_of_taught_parts_are_shown() -> None:
    taught = [False] * 100_000
    taught[50_000:50_040] = [True] * 40
    assert shown_parts(taught, 70_000) == [
        (0, AROUND),
        (50_000 - AROUND, 50_040 + AROUND),
        (70_000 - AROUND, 70_000 + AROUND),
        (100_000 - AROUND, 100_000),
    ]


def test_many_taught_parts_are_bounded() -> None:
    taught = [i // 1000 % 2 == 1 for i in range(1_000_000)]
    assert len(shown_parts(taught, None)) <= MOST_EDGES + 2


def test_what_is_left_out_is_counted() -> None:
    tokenizer = load_tokenizer(512)
    tokens = tokenizer.encode("a b " * 4000)
    out = io.StringIO()
    show_document(tokens, [False] * len(tokens), None, tokenizer, Console(file=out, width=10**6, highlight=False))
    text, pieces = out.getvalue().splitlines()
    gap = f" … {len(tokens) - 2 * AROUND:,} tokens … "
    assert text.count(gap) == pieces.count(gap) == 1
    assert len(text) < 2000
