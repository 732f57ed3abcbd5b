"""Processes that act together on files, or one alone: what fails in one of them is raised in all.

All traffic goes over the group that is given, so that a thread may save while training talks over other groups.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

T = TypeVar("T")


class Ranks:
    """A group of processes whose tensors are on the CPU (gloo); without a group, this process alone."""

    def __init__(self, group: ProcessGroup | None):
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.count = 1 if group is None else dist.get_world_size(group)

    def each(self, action: Callable[[], T]) -> list[T]:
        """Act on every rank and return what came of it by rank, on every rank.

        Raises:
            OSError, ValueError: it failed so on a rank; of several the first's failure is raised on all.
            RuntimeError: another failure, with its rank.
        """
        if self.group is None:
            return [action()]
        value = None
        failure = None
        try:
            value = action()
        except BaseException as error:
            failure = error
        return self._settled(value, failure)

    def first(self, action: Callable[[], T]) -> T:
        """Act on rank 0 and return what came of it on every rank; failures as with `each`."""
        values: list[Any] = self.each(lambda: action() if self.rank == 0 else None)
        return values[0]

    def agree(self, failure: BaseException | None) -> None:
        """Return if no rank has a failure to tell, otherwise raise as `each` does."""

        def tell() -> None:
            if failure is not None:
                raise failure

        self.each(tell)

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Around what talks to the others.

        Raises:
            OSError: one of them is gone.
        """
        try:
            yield
        except RuntimeError as error:
            if self.group is None:
                raise
            raise OSError(f"a process that takes part in saving or loading is gone: {error}") from error

    def _settled(self, value: Any, failure: BaseException | None) -> list[Any]:
        said: list[Any] = [None] * self.count
        told = None if failure is None else _portable(failure, self.rank)
        try:
            with self.talking():
                dist.all_gather_object(said, (value, told), group=self.group)
        except OSError:
            if failure is not None:
                raise failure from None  # nobody is left to be told, but it is what happened here
            raise
        failures = [other for _, other in said if other is not None]
        if failures:
            _raise(failures[0], failure)
        return [value for value, _ in said]


ONE_RANK = Ranks(None)
"""This process alone."""


def _raise(told: Exception, own: BaseException | None) -> NoReturn:
    if own is not None and not isinstance(own, Exception):
        raise own  # a signal's
    raise told from own


def _portable(error: BaseException, rank: int) -> Exception:
    """The failure as every process can receive it."""
    if isinstance(error, OSError):
        return (
            OSError(str(error))
            if error.errno is None
            else OSError(error.errno, error.strerror, error.filename and str(error.filename))
        )
    if isinstance(error, ValueError):
        return ValueError(str(error))
    return RuntimeError(f"rank {rank}: {type(error).__name__}: {error}")
