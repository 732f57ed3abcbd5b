"""Decodes several requests together (continuous batching), with optional speculative decoding."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from seektune.generate.cache_limit import CacheLimit
from seektune.generate.capacity import CacheRoom
from seektune.generate.controller import Controller
from seektune.generate.decodable import DecodableModel
from seektune.generate.drafter import drafter_of
from seektune.generate.mesh import DecodeMesh, OpenEngine
from seektune.generate.plan import EngineOptions
from seektune.generate.prefix_cache import PrefixPlaces
from seektune.generate.request import DraftCounts, Request, Token
from seektune.generate.worker import DecodeWorker
from seektune.model.kv_cache.cache import ROLLBACK

Decodes: TypeAlias = DecodableModel | DecodeMesh
"""What can decode: a model on one device, or one that is spread over processes."""


class DecodeEngine:
    """Decodes requests together; each gets the tokens that it would get alone.

    Each step is a plan of the controller, which one rank runs, or all ranks of a mesh. With `speculative` the MTP block
    or the DSpark stages draft tokens ahead, and the next forward verifies them; tokens are distributed as without
    drafts (greedy ones are the same).
    """

    def __init__(
        self,
        model: Decodes,
        requests: Sequence[Request] = (),
        speculative: bool = False,
        longest: int | None = None,
        cpu_kernels: bool = True,
        max_num_seqs: int | None = None,
        prefix_bytes: int = 0,
        memory: CacheLimit | None = None,
        rooms: Sequence[CacheRoom] | None = None,
        static_steps: bool = False,
    ):
        """Queue the first requests; nothing is computed yet.

        Args:
            model: to decode with; of a mesh, the one of rank 0, which leads. A mesh runs its newest engine only.
            requests: the first requests.
            speculative: let the model's drafter propose tokens.
            longest: maximum tokens of a sequence, prompt included, if requests may join later; caches then grow with
                the sequences. None allocates them for the longest of `requests`.
            cpu_kernels: use the compiled kernels of `kernels.cpu` for fp32 on a CPU, if there is a compiler. Results
                differ in the last digits, so evaluations do not use them.
            max_num_seqs: maximum number of sequences decoded together, on all ranks; others wait. None = no maximum.
            prefix_bytes: memory of each rank for a prefix cache, from which later requests that begin with the tokens
                of earlier ones continue; 0 = none. There is none with `speculative`, without `longest`, or on several
                pipeline stages, which would have to drop the same caches.
                The cache takes at most a quarter of `memory`.
            memory: how much memory caches may take; sequences wait for it. None = no limit.
            rooms: those of an earlier engine of the model with the same options, which are not measured again: what
                other caches take now is not taken for good.
            static_steps: run decode steps in static shapes, on a GPU as captured CUDA graphs, on copies of the caches:
                of a whole model on one device; `static_obstacle` has the exceptions.

        Raises:
            ValueError: a request is invalid, is longer than the model's context or can never fit into `memory`, or the
                model has no drafter or no static steps.
        """
        most = max((each.longest for each in requests), default=0) if longest is None else longest
        grows = longest is not None
        reuses = grows and not speculative and not (isinstance(model, DecodeMesh) and model.ranks.pp_size > 1)
        kept = prefix_bytes if reuses else 0
        options = EngineOptions(most, grows, speculative, kept, cpu_kernels, static_steps, memory, rooms)
        _check_options(model, options)
        self._longest = most
        self._config = model.config
        self._check(requests)
        self._engine = model.open_engine(options) if isinstance(model, DecodeMesh) else self._alone(model, options)
        self._stages = self._engine.stages
        prefixes = PrefixPlaces(ROLLBACK) if kept > 0 and len(self._engine.rooms) > 1 else None
        self._controller = Controller(self._engine.rooms, max_num_seqs, self._stages, prefixes)
        self._controller.add(requests)
        self.drafts: DraftCounts = self._controller.drafts

    @property
    def done(self) -> bool:
        """Whether every request has ended."""
        return self._controller.done

    @property
    def cache_bytes(self) -> int:
        """Memory of the caches of all running sequences, after the last step."""
        return self._controller.cache_bytes

    @property
    def rooms(self) -> Sequence[CacheRoom]:
        """The memory of each rank for caches, before the first step."""
        return self._engine.rooms

    @property
    def room(self) -> CacheRoom:
        """The memory for caches of the rank that has least of it."""
        return min(self._engine.rooms, key=CacheRoom.tokens)

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Add requests; returns the numbers that identify them in tokens.

        Raises:
            ValueError: one of them is invalid; then none is added.
        """
        self._check(requests)
        return self._controller.add(requests)

    def end(self, request: int) -> None:
        """Stop decoding a request."""
        if self._controller.retire(request) and self.done:  # perhaps no step follows that would free its cache
            for _ in range(self._stages):
                self.step()

    def step(self) -> list[Token]:
        """Run one step: the next token of each running request, more if drafts are accepted; and a prefill chunk.

        Of a pipeline of n stages, a step gives tokens of an n-th of the requests.

        Raises:
            ArithmeticError: the model's logits are NaN.
            RuntimeError: memory ran out, or a rank of a mesh is gone.
        """
        tokens = self._next()
        if self.done:  # stages before the last one free the cache later
            for _ in range(self._stages - 1):
                self._next()
        return tokens

    def tokens(self) -> Iterator[Token]:
        """All remaining tokens."""
        while not self.done:
            yield from self.step()

    def _next(self) -> list[Token]:
        return self._controller.record(self._engine.run(self._controller.plan()))

    def _check(self, requests: Sequence[Request]) -> None:
        for request in requests:
            request.check(self._config.vocab_size)
            tokens = len(request.prompt) + request.max_new_tokens
            self._config.check_length(tokens, "the length of the prompt and its new tokens")
            if request.longest > self._longest:
                raise ValueError(f"a sequence of up to {request.longest} tokens exceeds the maximum of {self._longest}")

    def _alone(self, model: DecodableModel, options: EngineOptions) -> OpenEngine:
        worker = DecodeWorker(model, options, measured=None if options.rooms is None else options.rooms[0])
        return OpenEngine(lambda plan: [worker.step(plan)], [worker.room])


def _check_options(model: Decodes, options: EngineOptions) -> None:
    if options.static_steps and isinstance(model, DecodeMesh):
        raise ValueError("static_steps: the model is spread over processes; leave it out")
    if options.speculative and drafter_of(model.part if isinstance(model, DecodeMesh) else model) is None:
        raise ValueError("speculative decoding needs an MTP block or DSpark stages; this model has none")
