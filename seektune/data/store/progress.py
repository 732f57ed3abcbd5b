"""Shows how far and how fast a preparation is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from seektune.data.store.prepare import Progress
from seektune.io.console import many, part_bar


@contextmanager
def shown_progress(name: str) -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error, with the speed."""
    with part_bar(f"preparing {name}") as bar:
        yield lambda done: bar(
            done.shards, done.of, f"{many(done.tokens)} tokens, {many(round(done.tokens_per_s))} per second"
        )
