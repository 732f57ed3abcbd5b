"""A group of processes that work on files together: an error on one rank is raised on all.

All communication uses the given group, so a thread can save while training communicates over other groups.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

T = TypeVar("T")


class Ranks:
    """A process group for CPU tensors (gloo), or this process alone if there is no group."""

    def __init__(self, group: ProcessGroup | None):
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.count = 1 if group is None else dist.get_world_size(group)

    def each(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank and return the results of all ranks, in rank order, on every rank.

        Raises:
            OSError, ValueError: `action` raised it on a rank; the lowest rank's error is raised on all.
            RuntimeError: another error on a rank; the message has the rank.
        """
        if self.group is None:
            return [action()]
        value = None
        failure = None
        try:
            value = action()
        except BaseException as error:
            failure = error
        return self._exchange(value, failure)

    def first(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and return its result on every rank; errors as in `each`."""
        values: list[Any] = self.each(lambda: action() if self.rank == 0 else None)
        return values[0]

    def agree(self, failure: BaseException | None) -> None:
        """Raise on all ranks, as `each` does, if any rank passes a failure."""

        def raise_failure() -> None:
            if failure is not None:
                raise failure

        self.each(raise_failure)

    @contextmanager
    def communicating(self) -> Iterator[None]:
        """Wrap communication with the other ranks.

        Raises:
            OSError: a process of the group is gone.
        """
        try:
            yield
        except RuntimeError as error:
            if self.group is None:
                raise
            raise OSError(f"a process that takes part in saving or loading is gone: {error}") from error

    def _exchange(self, value: Any, failure: BaseException | None) -> list[Any]:
        outcomes: list[Any] = [None] * self.count
        sent = None if failure is None else _picklable(failure, self.rank)
        try:
            with self.communicating():
                dist.all_gather_object(outcomes, (value, sent), group=self.group)
        except OSError:
            if failure is not None:
                raise failure from None  # the group is gone, so raise this rank's own error
            raise
        failures = [other for _, other in outcomes if other is not None]
        if failures:
            _raise(failures[0], failure)
        return [value for value, _ in outcomes]


def _raise(first: Exception, own: BaseException | None) -> NoReturn:
    if own is not None and not isinstance(own, Exception):
        raise own  # KeyboardInterrupt or SystemExit, from a signal
    raise first from own


def _picklable(error: BaseException, rank: int) -> Exception:
    """The error as a built-in exception, which any process can unpickle."""
    if isinstance(error, OSError):
        return (
            OSError(str(error))
            if error.errno is None
            else OSError(error.errno, error.strerror, error.filename and str(error.filename))
        )
    if isinstance(error, ValueError):
        return ValueError(str(error))
    return RuntimeError(f"rank {rank}: {type(error).__name__}: {error}")
