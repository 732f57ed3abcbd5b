"""Several texts that grow together, a token or an accepted draft at a time.

Shapes: B rows, T tokens, S streams, D width, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seektune.generate.sample import DEFAULT, Chooser, Sampling
from seektune.model.cache import Cache
from seektune.model.causal_lm import DeepseekV4ForCausalLM

CHUNK = 4096
"""Tokens of all rows together that one forward of a prefill reads."""


@dataclass(frozen=True)
class Request:
    """A text to be continued."""

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = DEFAULT
    stop_ids: frozenset[int] = frozenset()
    """Tokens after which the text ends; they are part of it."""
    stops: tuple[str, ...] = ()
    """Strings before which the text ends: `speech` sees them, tokens alone do not."""
    seed: int = 0
    alternatives: int = 0
    """How many of the likeliest tokens are named beside each."""


@dataclass(frozen=True)
class Token:
    """A token that a text grew by."""

    request: int
    """Which of the requests, from 0."""
    id: int
    logprob: float
    """By the model's own distribution: before temperature, penalty and cuts."""
    alternatives: list[tuple[int, float]]
    """The likeliest tokens with their log-probabilities, best first."""
    end: str | None
    """`stop` or `length` where the text ends with it."""


@dataclass
class Drafts:
    """How often the MTP block guessed right."""

    made: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """Share that was accepted; 0 where none was made."""
        return self.accepted / max(self.made, 1)


@dataclass
class _Row:
    """A text that still grows."""

    index: int
    request: Request
    chooser: Chooser
    left: int
    last: int = -1
    """Its newest token, which no forward has read."""
    draft: int = -1
    drafted_V: Tensor | None = field(default=None, repr=False)
    """What the draft was drawn from; None where there is none."""


class Decoding:
    """Requests that are decoded together; each gets the text that it would get alone.

    With `speculative` the MTP block guesses one token ahead and the next forward reads the guess too; what is accepted
    is distributed as without (greedy texts are the same).
    """

    def __init__(self, model: DeepseekV4ForCausalLM, requests: Sequence[Request], speculative: bool = False):
        """Nothing is computed yet.

        Raises:
            ValueError: a request cannot be met, or the model has no MTP block to speculate with.
        """
        if speculative and not model.mtp:
            raise ValueError("speculative decoding needs an MTP block; this model has none")
        for request in requests:
            _check(request, model.config.vocab_size)
        self.drafts = Drafts()
        self._model, self._speculative = model, speculative
        self._rows = [
            _Row(i, each, Chooser(each.sampling, each.seed, each.prompt), each.max_new_tokens)
            for i, each in enumerate(requests)
        ]
        self._cache: Cache | None = None
        self._ahead: Cache | None = None

    @property
    def done(self) -> bool:
        """Whether every text has ended."""
        return not self._rows

    def end(self, request: int) -> None:
        """Let no more tokens come for a request, whose reader has enough."""
        self._keep([row.index != request for row in self._rows])

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """The next tokens: one for each text that grows, two where a draft was right.

        Raises:
            ArithmeticError: the model gives no numbers.
        """
        if self.done:
            return []
        streams = self._read_prompts() if self._cache is None else self._go_on()
        logits_BTV = self._model.logits(self._model.hidden(streams))
        read = streams.shape[1]
        taken = [self._take(row, logits) for row, logits in zip(self._rows, logits_BTV, strict=True)]
        lasting = [tokens[-1].end is None for tokens in taken]
        assert self._cache is not None
        # an ended row goes no further, however much of it is in the cache
        self._cache.rollback([(read - len(tokens)) * last for tokens, last in zip(taken, lasting, strict=True)])
        streams = self._keep(lasting, streams)
        if self._speculative and not self.done:
            self._draft(streams, [[token.id for token in tokens] for tokens in taken if tokens[-1].end is None])
        return [token for tokens in taken for token in tokens]

    def tokens(self) -> Iterator[Token]:
        """All that is still to come."""
        while not self.done:
            yield from self.step()

    def _read_prompts(self) -> Tensor:
        """Streams `[B, 1, S, D]` of the last token of each prompt; equal prompts are read once."""
        prompts = list(dict.fromkeys(tuple(row.request.prompt) for row in self._rows))
        # beyond a text's last token stand a draft and what it may bring
        most = max(len(row.request.prompt) + row.left for row in self._rows) + 2
        cache = self._model.new_cache(len(prompts), most)
        ahead = self._model.new_draft_cache(len(prompts), most) if self._speculative else None
        size, last = max(CHUNK // len(prompts), 1), dict[int, Tensor]()
        for start in range(0, max(map(len, prompts)), size):
            chunk, counts = self._padded([prompt[start : start + size] for prompt in prompts])
            streams = self._model.advance(chunk, cache, counts)
            last |= {i: streams[i, count - 1] for i, count in enumerate(counts) if count}
            if ahead is not None:
                after, known = self._padded([prompt[start + 1 : start + 1 + size] for prompt in prompts])
                if after.shape[1]:
                    self._model.foresee(streams[:, : after.shape[1]], after, ahead, known)
        place = {prompt: i for i, prompt in enumerate(prompts)}
        rows = [place[tuple(row.request.prompt)] for row in self._rows]
        if rows != list(range(len(prompts))):
            cache, ahead = cache.select(rows), ahead and ahead.select(rows)
        self._cache, self._ahead = cache, ahead
        return torch.stack([last[i] for i in rows]).unsqueeze(1)

    def _go_on(self) -> Tensor:
        """Streams `[B, T, S, D]` of each row's newest token, and of its draft."""
        assert self._cache is not None
        tokens = [[row.last] if row.drafted_V is None else [row.last, row.draft] for row in self._rows]
        return self._model.advance(self._padded(tokens)[0], self._cache)

    def _take(self, row: _Row, logits_TV: Tensor) -> list[Token]:
        """The tokens that a row grows by."""
        wanted_V = row.chooser.distribution(logits_TV[0])
        if row.drafted_V is None:
            return [self._append(row, row.chooser.draw(wanted_V), logits_TV[0])]
        draft, drafted_V, row.drafted_V = row.draft, row.drafted_V, None
        self.drafts.made += 1
        if not row.chooser.accepts(draft, wanted_V, drafted_V):
            return [self._append(row, row.chooser.draw((wanted_V - drafted_V).clamp(min=0)), logits_TV[0])]
        self.drafts.accepted += 1
        tokens = [self._append(row, draft, logits_TV[0])]
        if tokens[0].end is None:
            tokens.append(self._append(row, row.chooser.draw(row.chooser.distribution(logits_TV[1])), logits_TV[1]))
        return tokens

    def _append(self, row: _Row, token: int, logits_V: Tensor) -> Token:
        log_V = logits_V.log_softmax(dim=0)
        logprob = float(log_V[token])
        if math.isnan(logprob):
            raise ArithmeticError("the model's logits are not numbers; its weights may be damaged")
        row.chooser.note(token)
        row.last, row.left = token, row.left - 1
        best = log_V.topk(min(row.request.alternatives, len(log_V)))
        alternatives = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        end = "stop" if token in row.request.stop_ids else "length" if row.left == 0 else None
        return Token(row.index, token, logprob, alternatives, end)

    def _draft(self, streams_BTSD: Tensor, taken: list[list[int]]) -> None:
        """Let the MTP block guess what follows each row's newest token."""
        assert self._ahead is not None
        after, counts = self._padded(taken)
        hidden_BTD = self._model.foresee(streams_BTSD[:, : after.shape[1]], after, self._ahead, counts)
        last_BD = torch.stack([hidden[count - 1] for hidden, count in zip(hidden_BTD, counts, strict=True)])
        for row, logits_V in zip(self._rows, self._model.logits(last_BD), strict=True):
            row.drafted_V = row.chooser.distribution(logits_V)
            row.draft = row.chooser.draw(row.drafted_V)

    def _keep(self, lasting: list[bool], streams: Tensor | None = None) -> Tensor:
        """Forget the rows that have ended, and their streams."""
        places = [i for i, last in enumerate(lasting) if last]
        streams = torch.empty(0) if streams is None else streams
        if len(places) == len(self._rows):
            return streams
        self._rows = [self._rows[i] for i in places]
        if self._cache is not None and places:
            self._cache = self._cache.select(places)
            self._ahead = self._ahead and self._ahead.select(places)
        return streams[places] if len(streams) else streams

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
        """Ids `[B, T]` with zeros after shorter rows, and how long each is."""
        counts = [len(row) for row in rows]
        ids = [[*row, *[0] * (max(counts) - len(row))] for row in rows]
        return torch.tensor(ids, dtype=torch.int64, device=self._model.embed.weight.device), counts


def _check(request: Request, vocab_size: int) -> None:
    """Refuse what cannot be continued.

    Raises:
        ValueError: it cannot.
    """
    if not request.prompt:
        raise ValueError("a prompt needs at least one token; texts begin with BOS")
    if not all(0 <= token < vocab_size for token in request.prompt):
        raise ValueError(f"a prompt's ids must lie in the vocabulary, 0 to {vocab_size - 1}")
    if request.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, not {request.max_new_tokens}")
