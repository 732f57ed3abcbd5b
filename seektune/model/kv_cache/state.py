"""The state of a KV cache: the buffers of all layers, and the length of each row."""

from collections.abc import Iterator

from seektune.model.kv_cache.layer import SPARE, Compressed, LayerCache, Tail


class CacheState:
    """The state that a forward pass reads and writes."""

    def __init__(self, layers: dict[int, LayerCache], rows: int):
        self.layers = layers
        self.lengths = [0] * rows
        """Number of tokens of each row."""
        self.used = 0
        """Tokens appended to every tail since it was last moved."""

    def tails(self) -> Iterator[Tail]:
        """Of all layers."""
        return (tail for layer in self.layers.values() for tail in layer.tails())

    def compressors(self) -> Iterator[Compressed]:
        """Of all layers."""
        return (each for layer in self.layers.values() for each in layer.compressors())

    def move_tails(self, tokens: int) -> None:
        """Move the content of tails to the start of their buffers if the next tokens would not fit behind it."""
        if self.used + tokens <= SPARE:
            return
        for tail in self.tails():
            tail.values[:, : tail.keep] = tail.values[:, self.used : self.used + tail.keep].clone()
        self.used = 0
