"""The one thread in which a model works: requests wait, grow together, end, are cancelled or run out of time."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from seektune.data.tokenizer import Tokenizer
from seektune.generate.detokenize import TextDelta, TextStream
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.serve.errors import ApiError
from seektune.serve.limits import Limits

Event: TypeAlias = TextDelta | ApiError
log = logging.getLogger(__name__)


@dataclass(eq=False)
class GenerationJob:
    """What a client asked for: one or more answers of one model."""

    model: str
    requests: Sequence[Request]
    tell: Callable[[Event], None]
    """Hears, in the worker's thread, each piece (`request` counts from 0 here), or the error that ends the job."""
    deadline: float
    """By the scheduler's clock."""
    cancelled: bool = False


@dataclass
class _ModelQueue:
    """A model, and what grows by it."""

    name: str
    speech: TextStream
    seats: dict[int, tuple[GenerationJob, int]] = field(default_factory=dict)
    """Job and number there of each answer, by its number in the speech."""

    def jobs(self) -> list[GenerationJob]:
        """All who wait for answers here."""
        return list(dict.fromkeys(job for job, _ in self.seats.values()))

    def leave(self, job: GenerationJob) -> None:
        """Let none of a job's answers grow on."""
        for number in [number for number, (other, _) in self.seats.items() if other is job]:
            self.speech.end(number)
            del self.seats[number]


class Scheduler:
    """Serves jobs in the order of their arrival, as many together as there is room for.

    Models take turns, a step each: an adapter and its base are two models on the same weights.
    """

    def __init__(
        self,
        models: Mapping[str, DeepseekV4ForCausalLM],
        tokenizer: Tokenizer,
        limits: Limits,
        speculative: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.clock = clock
        """Seconds; deadlines of jobs are read off it."""
        self._models = models
        self._tokenizer = tokenizer
        self._limits = limits
        self._speculative = speculative
        self._desks = {name: _ModelQueue(name, self._speech(name)) for name in models}
        self._queue: deque[GenerationJob] = deque()
        self._news = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive() and not self._stopping

    @property
    def load(self) -> tuple[int, int]:
        """Answers that grow, and jobs that wait."""
        return sum(len(desk.seats) for desk in self._desks.values()), len(self._queue)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End what still grows or waits with an error, and return when all is still."""
        with self._news:
            self._stopping = True
            self._news.notify()
        self._thread.join()

    def submit(self, job: GenerationJob) -> None:
        """Let a job wait for its turn.

        Raises:
            ApiError: too many wait, or the server stops.
        """
        with self._news:
            if not self.alive:
                raise ApiError(503, "the server is stopping")
            if len(self._queue) >= self._limits.max_queued_requests:
                raise ApiError(429, f"{len(self._queue)} requests are waiting already; try again later")
            self._queue.append(job)
            self._news.notify()

    def cancel(self, job: GenerationJob) -> None:
        """Forget a job, whatever became of it; it hears nothing more soon."""
        with self._news:
            job.cancelled = True
            if job in self._queue:
                self._queue.remove(job)

    def _run(self) -> None:
        while self._wait():
            self._dismiss()
            self._admit()
            for desk in self._desks.values():
                if desk.seats:
                    self._step(desk)
        for job in [*self._queue, *(job for desk in self._desks.values() for job in desk.jobs())]:
            job.tell(ApiError(503, "the server is stopping"))

    def _wait(self) -> bool:
        """Sleep until there is work; whether to go on."""
        with self._news:
            while not self._stopping and not self._queue and not any(desk.seats for desk in self._desks.values()):
                self._news.wait()
            return not self._stopping

    def _dismiss(self) -> None:
        """Let go of jobs that were cancelled or are late."""
        now = self.clock()
        for desk in self._desks.values():
            for job in desk.jobs():
                if job.cancelled or now > job.deadline:
                    desk.leave(job)
                    self._tell_late(job)
        with self._news:
            late = [job for job in self._queue if now > job.deadline]
            self._queue = deque(job for job in self._queue if now <= job.deadline)
        for job in late:
            self._tell_late(job)

    def _tell_late(self, job: GenerationJob) -> None:
        if not job.cancelled:
            job.tell(ApiError(504, f"the answer was not complete after {self._limits.request_timeout:g} s"))

    def _admit(self) -> None:
        """Let jobs begin as long as there is room for the first; none overtakes another."""
        while True:
            with self._news:
                room = self._limits.max_num_seqs - sum(len(desk.seats) for desk in self._desks.values())
                if not self._queue or len(self._queue[0].requests) > room:
                    return
                job = self._queue.popleft()
            desk = self._desks[job.model]
            try:
                numbers = desk.speech.add(job.requests)
            except ValueError as error:
                job.tell(ApiError(400, str(error)))
                continue
            desk.seats |= {number: (job, i) for i, number in enumerate(numbers)}

    def _step(self, desk: _ModelQueue) -> None:
        """One step of all answers of a model; if it fails, they fail, and nobody else."""
        try:
            pieces = desk.speech.step()
        except Exception as error:  # whatever a model may raise: this thread serves the other models, too
            log.exception("decoding failed")
            jobs = desk.jobs()
            desk.seats = {}
            desk.speech = self._speech(desk.name)
            for job in jobs:
                job.tell(ApiError(500, f"decoding failed: {error}"))
            return
        for piece in pieces:
            job, number = desk.seats[piece.request]
            if piece.end is not None:
                del desk.seats[piece.request]
            job.tell(replace(piece, request=number))

    def _speech(self, name: str) -> TextStream:
        decoding = DecodeEngine(self._models[name], (), self._speculative, self._limits.max_model_len)
        return TextStream(decoding, (), self._tokenizer)
