"""Decodes all requests in one thread: jobs wait, run together, finish, are cancelled or time out."""

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from seektune.data.tokenizer import Tokenizer
from seektune.generate.cache_limit import CacheLimit
from seektune.generate.capacity import CacheRoom
from seektune.generate.detokenize import TextDelta, TextStream
from seektune.generate.engine import DecodeEngine, Decodes
from seektune.generate.request import Request
from seektune.serve.errors import ApiError
from seektune.serve.limits import Limits

Event: TypeAlias = TextDelta | ApiError
log = logging.getLogger(__name__)


@dataclass(eq=False)
class GenerationJob:
    """One or more completions by one model, for one client."""

    model: str
    requests: Sequence[Request]
    on_event: Callable[[Event], None]
    """Called in the scheduler's thread with each delta (`request` counts from 0 in the job), or with the error that
    ends the job."""
    deadline: float
    """By the scheduler's clock."""
    cancelled: bool = False


@dataclass
class _ModelBatch:
    """A model and its running completions."""

    name: str
    stream: TextStream
    running: dict[int, tuple[GenerationJob, int]] = field(default_factory=dict)
    """The job of each completion and its index there, by its number in the stream."""

    def jobs(self) -> list[GenerationJob]:
        """The jobs that have running completions."""
        return list(dict.fromkeys(job for job, _ in self.running.values()))

    def remove(self, job: GenerationJob) -> None:
        """Stop the completions of a job."""
        for number in [number for number, (other, _) in self.running.items() if other is job]:
            self.stream.end(number)
            del self.running[number]


class Scheduler:
    """Runs jobs in the order of arrival, as many together as `max_num_seqs` allows.

    Models take turns, one step each: an adapter and its base are two models on the same weights.
    """

    def __init__(
        self,
        models: Mapping[str, Decodes],
        tokenizer: Tokenizer,
        limits: Limits,
        speculative: bool = False,
        static_steps: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.clock = clock
        """Seconds; deadlines of jobs are read off it."""
        self._models = models
        self._tokenizer = tokenizer
        self._limits = limits
        self._speculative = speculative
        self._static_steps = static_steps
        self._rooms: dict[str, Sequence[CacheRoom]] = {}
        """Memory for caches, measured before there are any."""
        self._batches = {name: _ModelBatch(name, self._new_stream(name)) for name in models}
        self._queue: deque[GenerationJob] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it accepts jobs."""
        return self._thread.is_alive() and not self._stopping

    @property
    def load(self) -> tuple[int, int]:
        """Number of running completions, and of waiting jobs."""
        return sum(len(batch.running) for batch in self._batches.values()), len(self._queue)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End all running and waiting jobs with an error, and wait for the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, job: GenerationJob) -> None:
        """Add a job to the queue.

        Raises:
            ApiError: the queue is full, or the server is stopping.
        """
        with self._changed:
            if not self.alive:
                raise ApiError(503, "the server is stopping")
            if len(self._queue) >= self._limits.max_queued_requests:
                raise ApiError(429, f"the queue is full: {len(self._queue)} requests are waiting; try again later")
            self._queue.append(job)
            self._changed.notify()

    def cancel(self, job: GenerationJob) -> None:
        """Drop a job in any state; its events end soon after."""
        with self._changed:
            job.cancelled = True
            if job in self._queue:
                self._queue.remove(job)

    def _run(self) -> None:
        try:
            while self._wait():
                self._drop_expired()
                self._admit()
                for batch in self._batches.values():
                    if batch.running:
                        self._step(batch)
        except Exception:  # outside of a step of one model, for example because a process of a mesh is gone
            log.exception("decoding cannot continue")
        with self._changed:
            self._stopping = True
        self._end_all()

    def _end_all(self) -> None:
        """End running and waiting jobs with an error."""
        for job in [*self._queue, *(job for batch in self._batches.values() for job in batch.jobs())]:
            job.on_event(ApiError(503, "the server is stopping"))

    def _wait(self) -> bool:
        """Sleep until there is work; False once the server is stopping."""
        with self._changed:
            while not self._stopping and not self._queue and not any(batch.running for batch in self._batches.values()):
                self._changed.wait()
            return not self._stopping

    def _drop_expired(self) -> None:
        """Drop jobs that were cancelled or are past their deadline."""
        now = self.clock()
        for batch in self._batches.values():
            for job in batch.jobs():
                if job.cancelled or now > job.deadline:
                    batch.remove(job)
                    self._report_timeout(job)
        with self._changed:
            late = [job for job in self._queue if now > job.deadline]
            self._queue = deque(job for job in self._queue if now <= job.deadline)
        for job in late:
            self._report_timeout(job)

    def _report_timeout(self, job: GenerationJob) -> None:
        if not job.cancelled:
            job.on_event(ApiError(504, f"the response was not complete after {self._limits.request_timeout:g} s"))

    def _admit(self) -> None:
        """Start jobs while there is room for the first in the queue; none overtakes another."""
        while True:
            with self._changed:
                room = self._limits.max_num_seqs - sum(len(batch.running) for batch in self._batches.values())
                if not self._queue or len(self._queue[0].requests) > room:
                    return
                job = self._queue.popleft()
            batch = self._batches[job.model]
            try:
                numbers = batch.stream.add(job.requests)
            except ValueError as error:
                job.on_event(ApiError(400, str(error)))
                continue
            batch.running |= {number: (job, i) for i, number in enumerate(numbers)}

    def _step(self, batch: _ModelBatch) -> None:
        """Run one step of a model; an error fails the model's running jobs and no others."""
        failure = None
        deltas: Sequence[TextDelta] = ()
        try:
            deltas = batch.stream.step()
        except Exception as error:  # any exception: this thread serves the other models, too
            log.exception("decoding failed")
            failure = f"decoding failed: {error}"
        if failure is not None:  # outside of `except`: the error refers to the engine and its caches
            self._restart(batch, failure)
        for delta in deltas:
            job, index = batch.running[delta.request]
            if delta.end is not None:
                del batch.running[delta.request]
            job.on_event(replace(delta, request=index))

    def _restart(self, batch: _ModelBatch, failure: str) -> None:
        """End the running jobs of a model whose engine has failed, and give it a new engine."""
        jobs = batch.jobs()
        batch.running = {}
        for job in jobs:
            job.on_event(ApiError(500, failure))
        batch.stream = self._new_stream(batch.name)
        gc.collect()  # the error and the failed engine refer to each other

    def _new_stream(self, name: str) -> TextStream:
        limits = self._limits
        engine = DecodeEngine(
            self._models[name],
            (),
            self._speculative,
            limits.max_model_len,
            prefix_bytes=limits.prefix_cache,
            memory=CacheLimit(limits.gpu_memory_utilization, len(self._models)),
            rooms=self._rooms.get(name),
            static_steps=self._static_steps,
        )
        self._rooms[name] = engine.rooms
        return TextStream(engine, (), self._tokenizer)
