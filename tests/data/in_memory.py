"""The examples of a dataset as its encoder gives them, without a store: what prepared ones are compared with."""

from seektune.data.datasets.dataset import DataCache, DataConfig, EncodeSettings, Split
from seektune.data.example import Example


def encoded(
    section: DataConfig, split: Split, vocab_size: int, cache: DataCache, limit: int | None = None
) -> list[Example]:
    """The examples of at most `limit` rows of a split."""
    rows, _ = section.rows(split, cache, limit)
    found = section.good(section.encoder(EncodeSettings(vocab_size)).encode(rows), cache.note)
    return [example for examples in found for example in examples]
