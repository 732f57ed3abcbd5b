"""What the ranks of a decode engine do in a step, and what each of them reports; plain data that can be sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from seektune.generate.cache_limit import CacheLimit
from seektune.generate.capacity import CacheRoom
from seektune.generate.request import DraftCounts, Request, Token


@dataclass(frozen=True)
class EngineOptions:
    """The options of an engine, which are the same on all ranks."""

    longest: int
    """Maximum tokens of a sequence, prompt included."""
    grows: bool = False
    """Whether caches grow with their sequences, or are allocated for the longest one."""
    speculative: bool = False
    """Whether the model's drafter proposes tokens."""
    prefix_bytes: int = 0
    """Memory of each rank for caches of ended sequences and of prompts; 0 = no prefix cache. Caches must grow."""
    cpu_kernels: bool = True
    """Whether to use the compiled kernels of `kernels.cpu`, for fp32 on a CPU."""
    static_steps: bool = False
    """Whether to run decode steps in static shapes, on a GPU as captured graphs, where the model has them."""
    memory: CacheLimit | None = None
    """How much memory caches may take; None = no limit."""
    rooms: Sequence[CacheRoom] | None = None
    """The memory of each rank, if an earlier engine has measured it; None = each measures what is free now."""


@dataclass(frozen=True)
class Admission:
    """A new sequence and its place."""

    rank: int
    """The rank of each pipeline stage that decodes it and holds its cache."""
    number: int
    """Number of the request."""
    request: Request


@dataclass(frozen=True)
class StepPlan:
    """One step of all ranks.

    Ranks with the experts of a layer take part in every forward pass of each other: where a rank has no sequence for a
    pass of the plan, it runs that pass without tokens. With a drafter, each pass of the backbone is followed by one of
    the drafter; one that reads prompts with experts also has a pass for each chunk of them.
    """

    admitted: Sequence[Admission]
    """New sequences of all ranks; each takes its own."""
    retired: Sequence[int]
    """Requests that end before their text does; those that a rank does not have are ignored."""
    decode: bool
    """Whether all ranks run a forward pass of the next token of their sequences."""
    prefill: bool
    """Whether all ranks run a forward pass of a chunk of prompts."""
    group: int = 0
    """The sequences that the plan is about: those of a pipeline step in as many groups as there are stages."""
    sampled: Sequence[Token] = ()
    """The tokens that the last stage sampled in the step of this group before."""


@dataclass(frozen=True)
class StepReport:
    """What one rank did in a step."""

    tokens: Sequence[Token]
    running: int
    """Sequences whose next token the next step decodes."""
    prefilling: bool
    """Whether prompts are left to read."""
    cache_bytes: int = 0
    """Memory of the caches of the running sequences."""
    error: Exception | None = None
    """Why the step failed on this rank, outside of its forward passes."""
    drafts: Mapping[int, DraftCounts] = field(default_factory=dict)
    """Counts of the drafts that were verified, by the number of their request."""
