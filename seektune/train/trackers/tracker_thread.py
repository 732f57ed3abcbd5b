"""Sends values to a tracker from a thread of its own: a slow or absent server neither stops nor slows training."""

from collections.abc import Callable, Mapping
from functools import partial
from queue import Empty, Full, Queue
from threading import Thread
from time import monotonic

from seektune.io.text import on_one_line
from seektune.train.trackers.tracker import TrackedValues, Tracker

QUEUE_SIZE = 10_000
"""Records that wait for a server at most; further ones are dropped."""
TOGETHER = 100
"""Records that are sent together at most."""
ELSEWHERE = "training continues, and metrics.jsonl has all values"


class TrackerThread:
    """A tracker with a bounded queue. The methods never wait, except `close`, up to a time limit."""

    def __init__(self, tracker: Tracker, size: int = QUEUE_SIZE):
        self.name = tracker.name
        self._tracker = tracker
        self._queue: Queue[TrackedValues | None] = Queue(size)
        self._added = 0
        self._sent = 0
        self._open = False
        self._finished = True
        self._problem = ""
        self._told = ""
        # a daemon: the process can end while a client waits for its server
        self._thread = Thread(target=self._work, name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the values of a step; they are dropped if the queue is full."""
        self._added += 1
        try:
            self._queue.put_nowait(TrackedValues(step, values))
        except Full:
            self._problem = self._problem or "the server is too slow, and the queue is full"

    def news(self) -> str | None:
        """A message about the first problem, once; None if there is nothing to tell."""
        if self._told or not self._problem:
            return None
        self._told = self._problem
        return f"{self.name}: {self._told}; {ELSEWHERE}"

    def close(self, finished: bool, seconds: float) -> str | None:
        """Send what is left, for so long at most, and end the run.

        Returns:
            A message about values that were not sent; None if all were.
        """
        deadline = monotonic() + seconds
        self._finished = finished
        try:
            self._queue.put(None, timeout=seconds)
        except Full:
            pass
        else:
            self._thread.join(max(0.0, deadline - monotonic()))
        late = f"the server took longer than logging.flush_timeout, {seconds:g} s"
        lost = self._added - self._sent
        if lost:
            counts = f"{lost:,} of {self._added:,} records were not sent"
            return f"{self.name}: {counts} ({self._problem or late}); metrics.jsonl has all values"
        return f"{self.name}: {late}, to end the run" if self._thread.is_alive() else self.news()

    def _work(self) -> None:
        last = False
        while not last:
            records, last = self._take()
            if self._tried(partial(self._send, records)):
                self._sent += len(records)
        if self._open:
            self._tried(partial(self._tracker.close, self._finished))

    def _take(self) -> tuple[list[TrackedValues], bool]:
        """Wait for records; those that are queued, and whether they are the last."""
        records = []
        found = self._queue.get()
        try:
            while found is not None:
                records.append(found)
                if len(records) == TOGETHER:
                    return records, False
                found = self._queue.get_nowait()
        except Empty:
            return records, False
        return records, True

    def _send(self, records: list[TrackedValues]) -> None:
        if not self._open:
            self._tracker.open()
            self._open = True
        if records:
            self._tracker.log(records)

    def _tried(self, action: Callable[[], None]) -> bool:
        """Whether an action succeeded; the first problem is kept."""
        try:
            action()
        except Exception as error:  # clients raise exceptions of many kinds
            self._problem = self._problem or on_one_line(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
            return False
        return True
