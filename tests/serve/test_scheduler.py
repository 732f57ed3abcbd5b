"""Jobs wait, run together and end; what happens to one does not affect the others."""

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from seektune.generate import worker as decode_worker
from seektune.generate.detokenize import TextDelta, generate_all
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.generate.static_steps import StaticSteps
from seektune.model.kv_cache.cache import KVCache
from seektune.serve.app import Served
from seektune.serve.errors import ApiError
from seektune.serve.limits import Limits
from seektune.serve.scheduler import Event, GenerationJob, Scheduler
from tests.patience import HUNG

from .live import live
from .test_api import TEXT

LIMITS = Limits(max_model_len=1_000_000, max_num_seqs=3, max_queued_requests=2)


class Heard:
    """A job and the events it received."""

    def __init__(self, model: str, *requests: Request):
        self.events: list[Event] = []
        self.over, self.begun = threading.Event(), threading.Event()
        self.left = len(requests)
        self.job = GenerationJob(model, requests, self._hear, deadline=math.inf)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        self.begun.set()
        self.left -= isinstance(event, TextDelta) and event.end is not None
        if self.left == 0 or isinstance(event, ApiError):
            self.over.set()

    def texts(self) -> list[str]:
        assert self.over.wait(HUNG)
        assert all(isinstance(event, TextDelta) for event in self.events)
        return ["".join(e.text for e in self.events if e.request == i) for i in range(len(self.job.requests))]

    def error(self) -> ApiError:
        assert self.over.wait(HUNG)
        assert isinstance(self.events[-1], ApiError)
        return self.events[-1]


Begin = Callable[..., Scheduler]


@pytest.fixture
def begin(model, other, tokenizer) -> Iterator[Begin]:
    made: list[Scheduler] = []

    def start(**models: Any) -> Scheduler:
        made.append(Scheduler(models or {"toy": model, "other": other}, tokenizer, LIMITS))
        made[-1].start()
        return made[-1]

    yield start
    for worker in made:
        worker.stop()


def request(text: str, tokenizer, most: int = 6, seed: int = 0) -> Request:
    return Request(tokenizer.encode(text), most, GREEDY, seed=seed)


def long(tokenizer) -> Request:
    return request("The man", tokenizer, 900_000)


def test_a_request_that_can_never_fit_is_refused(begin, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_worker, "free_bytes", lambda *_: 1000)
    job = Heard("toy", request("The man", tokenizer))
    begin().submit(job.job)
    error = job.error()
    assert (error.status, "for its KV cache and a copy of it" in str(error)) == (400, True)


@pytest.mark.slow
def test_jobs_of_two_models_match_single_requests(begin, model, other, tokenizer) -> None:
    worker = begin()
    asked = [request(text, tokenizer) for text in ("The man", "A red bucket", "x")]
    first, second = Heard("toy", *asked), Heard("other", *asked)
    for heard in (first, second):
        worker.submit(heard.job)
    for heard, which in ((first, model), (second, other)):
        assert heard.texts() == [generate_all(which, tokenizer, [each])[0][0].text for each in asked]
    assert first.texts() != second.texts()
    assert worker.load == (0, 0)


@pytest.mark.slow
def test_jobs_wait_for_room_and_full_queue_refuses(begin, tokenizer) -> None:
    worker = begin()
    growing = [Heard("toy", long(tokenizer)) for _ in range(3)]
    for heard in growing:
        worker.submit(heard.job)
        assert heard.begun.wait(HUNG)
    waiting = [Heard("other", request("A", tokenizer)) for _ in range(2)]
    for heard in waiting:
        worker.submit(heard.job)
    with pytest.raises(ApiError, match="2 requests are waiting") as refused:
        worker.submit(Heard("toy", request("B", tokenizer)).job)
    assert refused.value.status == 429
    assert worker.load == (3, 2)
    assert not waiting[0].events
    worker.cancel(growing[1].job)
    assert waiting[0].texts() == waiting[1].texts()
    heard = len(growing[1].events)
    worker.cancel(growing[0].job)
    worker.cancel(growing[2].job)
    after = Heard("toy", request("B", tokenizer))
    worker.submit(after.job)
    assert len(after.texts()) == 1
    assert len(growing[1].events) == heard
    assert worker.load == (0, 0)


def test_job_cancelled_while_waiting_never_starts(begin, tokenizer) -> None:
    worker = begin()
    growing = Heard("toy", *[long(tokenizer)] * 3)
    waiting, later = Heard("toy", request("A", tokenizer)), Heard("toy", request("B", tokenizer))
    worker.submit(growing.job)
    assert growing.begun.wait(HUNG)
    for heard in (waiting, later):
        worker.submit(heard.job)
    worker.cancel(waiting.job)
    worker.cancel(growing.job)
    assert len(later.texts()) == 1
    assert waiting.events == []


def test_running_and_waiting_jobs_time_out(begin, tokenizer) -> None:
    worker = begin()
    growing, waiting = (Heard("toy", *[long(tokenizer)] * 3) for _ in range(2))
    for heard in (growing, waiting):
        worker.submit(heard.job)
    assert growing.begun.wait(HUNG)
    # in this order, else the waiting job could start in between
    for heard in (waiting, growing):
        heard.job.deadline = -math.inf
        assert heard.error().status == 504
        assert "not complete after 600 s" in str(heard.error())
    assert growing.events[:-1]
    assert not waiting.events[:-1]


@pytest.mark.slow
def test_model_with_nan_logits_fails_only_its_own_jobs(begin, toy_model, model, tokenizer, caplog) -> None:
    broken = toy_model(vocab_size=512)
    with torch.no_grad():
        broken.norm.weight[3] = torch.nan
    worker = begin(fine=model, broken=broken)
    for _ in range(2):
        good, bad = Heard("fine", request("The man", tokenizer)), Heard("broken", request("The man", tokenizer))
        for heard in (good, bad):
            worker.submit(heard.job)
        assert bad.error().status == 500
        assert "logits are NaN" in str(bad.error())
        assert len(good.texts()) == 1
    assert "decoding failed" in caplog.text


@pytest.mark.slow
def test_after_a_failed_step_a_model_has_the_memory_that_it_had(begin, toy_model, tokenizer, monkeypatch) -> None:
    """What other caches take when its new engine is made is not taken for good."""
    made = toy_model(vocab_size=512)
    worker = begin(toy=made)
    monkeypatch.setattr(decode_worker, "free_bytes", lambda *_: 0)
    logits = made.logits
    monkeypatch.setattr(made, "logits", lambda _: torch.full((1, 1, 512), torch.nan))
    bad = Heard("toy", request("The man", tokenizer))
    worker.submit(bad.job)
    assert bad.error().status == 500
    monkeypatch.setattr(made, "logits", logits)
    good = Heard("toy", request("The man", tokenizer))
    worker.submit(good.job)
    assert len(good.texts()) == 1


def test_where_decoding_cannot_continue_all_jobs_end(begin, toy_model, model, tokenizer, caplog, monkeypatch) -> None:
    """As where a process of a mesh is gone: no engine can replace the one that failed."""
    broken = toy_model(vocab_size=512)
    with torch.no_grad():
        broken.norm.weight[3] = torch.nan
    worker = begin(fine=model, broken=broken)
    growing = Heard("fine", long(tokenizer))
    worker.submit(growing.job)
    assert growing.begun.wait(HUNG)
    monkeypatch.setattr(worker, "_models", {})
    bad = Heard("broken", request("The man", tokenizer))
    worker.submit(bad.job)
    assert (bad.error().status, growing.error().status) == (500, 503)
    assert "decoding cannot continue" in caplog.text
    with pytest.raises(ApiError, match="stopping"):
        worker.submit(Heard("fine", request("A", tokenizer)).job)


def test_stop_ends_all_jobs(begin, tokenizer) -> None:
    worker = begin()
    growing, waiting = Heard("toy", *[long(tokenizer)] * 3), Heard("toy", request("A", tokenizer))
    for heard in (growing, waiting):
        worker.submit(heard.job)
    assert growing.begun.wait(HUNG)
    worker.stop()
    assert growing.error().status == waiting.error().status == 503
    assert not worker.alive
    with pytest.raises(ApiError, match="stopping"):
        worker.submit(waiting.job)


@pytest.mark.slow
def test_a_server_of_static_steps_answers_as_others_do(model, tokenizer, monkeypatch) -> None:
    advanced: list[int] = []
    advance = StaticSteps.advance

    def recorded(steps: StaticSteps, tokens_B1: torch.Tensor, cache: KVCache) -> torch.Tensor:
        advanced.append(len(tokens_B1))
        return advance(steps, tokens_B1, cache)

    monkeypatch.setattr(StaticSteps, "advance", recorded)

    def answers(static_steps: bool) -> list[str]:
        with live(Served({"toy": model}, tokenizer, static_steps=static_steps)) as found:
            prompts = ["The man", "The man picks", "A red bucket"]
            answer = found.post(TEXT, prompt=prompts, max_tokens=6, temperature=0)
            return [choice["text"] for choice in answer.body["choices"]]

    expected = answers(False)
    assert advanced == []
    assert answers(True) == expected
    assert advanced == [3] * 5
