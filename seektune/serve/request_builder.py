"""Turns API requests into generation requests: tokenizes prompts and checks lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from seektune.data.chat_format.encode import render_chat_prompt
from seektune.data.chat_format.encodings import V4_TAGS, CallTags, Encoding
from seektune.data.chat_format.message import check_tools
from seektune.data.chat_format.pieces import ChatText
from seektune.data.tokenizer import Tokenizer
from seektune.generate.request import Request
from seektune.io.text import check_unicode
from seektune.serve.constraint import Constraint, chat_constraint, text_constraint
from seektune.serve.errors import ApiError
from seektune.serve.generation_request import GenerationRequest
from seektune.serve.limits import Limits
from seektune.serve.schema import ChatRequest, CompletionRequest

COMPLETION_TOKENS = 16
"""Default `max_tokens` of `/v1/completions`, as in OpenAI's API; a chat may fill the context."""


@dataclass(frozen=True)
class PreparedRequest:
    """An API request as generation requests."""

    requests: list[Request]
    """`n` for each prompt, prompt by prompt."""
    prompt_tokens: int
    samples: int = 1
    """Requests of each prompt."""
    thinking: bool = False
    tags: CallTags = V4_TAGS
    """Of tool calls in the responses."""
    echoed: Sequence[str] = ()
    """The prompt of each request, for responses that begin with it."""
    constraint: Constraint | None = None
    """What each response has to follow, before `compiled` put it into the requests."""

    def compiled(self, vocab_size: int) -> "PreparedRequest":
        """The same with the constraint in its requests; may take a second.

        Raises:
            ApiError: the constraint's grammar is refused.
        """
        if self.constraint is None:
            return self
        grammar = self.constraint.compiled(vocab_size)
        return replace(self, constraint=None, requests=[replace(each, grammar=grammar) for each in self.requests])


@dataclass(frozen=True)
class RequestBuilder:
    """Builds generation requests with the server's tokenizer and limits."""

    tokenizer: Tokenizer
    vocab_size: int
    limits: Limits
    thinking: bool
    """Whether responses begin with reasoning by default."""
    encoding: Encoding

    def chat(self, body: ChatRequest) -> PreparedRequest:
        """Prepare a chat.

        Raises:
            ApiError: the messages do not follow the chat format or are too long, or no grammar can follow a schema.
        """
        thinking = body.thinks(self.thinking)
        self._check_samples(body, 1)
        if len(body.messages) > self.limits.max_model_len:
            raise self._too_long(f"{len(body.messages)} messages", "messages")
        prompt = self._rendered(body)
        self._check_characters(prompt.text, "messages")
        ids = self._chat_ids(prompt)
        max_tokens = body.max_tokens or body.max_completion_tokens
        prepared = self._prepare(body, [ids], max_tokens, body.alternatives)
        constraint = chat_constraint(body, self.encoding.tags, self.tokenizer, thinking)
        return replace(prepared, thinking=thinking, tags=self.encoding.tags, constraint=constraint)

    def count(self, body: ChatRequest) -> int:
        """The tokens of a chat's prompt, of any length.

        Raises:
            ApiError: the messages do not follow the chat format.
        """
        return len(self._chat_ids(self._rendered(body)))

    def completion(self, body: CompletionRequest) -> PreparedRequest:
        """Prepare text prompts.

        Raises:
            ApiError: an id is outside the vocabulary, a prompt is too long, or no grammar can follow a schema.
        """
        try:
            asked = body.prompts()
            self._check_samples(body, len(asked))
            prompts = [self._ids(prompt) for prompt in asked]
        except ValueError as error:
            raise ApiError(400, str(error), "prompt") from None
        tokens = COMPLETION_TOKENS if body.max_tokens is None else max(body.max_tokens, 1)
        prepared = self._prepare(body, prompts, tokens, body.alternatives)
        prepared = replace(prepared, constraint=text_constraint(body, self.tokenizer))
        if not body.echo:
            return prepared
        texts = [prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt) for prompt in asked]
        return replace(
            prepared,
            requests=[replace(request, echo=body.logprobs is not None) for request in prepared.requests],
            echoed=[text for text in texts for _ in range(body.samples)],
        )

    def _chat_ids(self, prompt: ChatText) -> list[int]:
        """The ids of a chat's prompt; other threads run meanwhile."""
        try:
            return prompt.ids(self.tokenizer)
        except ValueError as error:
            raise ApiError(400, str(error), "messages") from None

    def _rendered(self, body: ChatRequest) -> ChatText:
        """The prompt of a chat."""
        tools = body.offered_tools()
        try:
            check_tools(tools)
        except ValueError as error:
            raise ApiError(400, str(error), "tools") from None
        mode = "thinking" if body.thinks(self.thinking) else "chat"
        try:
            effort = self.encoding.tier(body.effort())
            described = None if body.response_format is None else body.response_format.described()
            prompt = render_chat_prompt(body.messages, tools, mode, effort, self.encoding.name, described)
            check_unicode(prompt.text)
        except ValueError as error:
            raise ApiError(400, str(error), "messages") from None
        except RecursionError:
            raise ApiError(400, "a message is nested too deeply", "messages") from None
        return prompt

    def _check_samples(self, body: GenerationRequest, prompts: int) -> None:
        if prompts * body.samples > self.limits.max_num_seqs:
            raise ApiError(400, f"at most {self.limits.max_num_seqs} completions per request (prompts times n)", "n")

    def _check_characters(self, text: str, field: str) -> None:
        """Refuse what cannot fit before it is tokenized."""
        if len(text) > self.limits.max_model_len * self.tokenizer.longest_token:
            raise self._too_long(f"{len(text)} characters", field)

    def _too_long(self, what: str, field: str) -> ApiError:
        limit = self.limits.max_model_len
        return ApiError(400, f"{what} exceed the server's limit of {limit} tokens", field, "context_length_exceeded")

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        check_unicode(prompt)
        self._check_characters(prompt, "prompt")
        return [self.tokenizer.bos_id, *self.tokenizer.encode_batch([prompt])[0]]

    def _prepare(
        self,
        body: GenerationRequest,
        prompts: Sequence[list[int]],
        max_tokens: int | None,
        alternatives: int,
    ) -> PreparedRequest:
        seed = body.first_seed()
        requests = []
        for ids in prompts:
            length = max_tokens or max(self.limits.max_model_len - len(ids), 1)
            if len(ids) + length > self.limits.max_model_len:
                field = "messages" if isinstance(body, ChatRequest) else "prompt"
                raise self._too_long(f"the prompt ({len(ids)} tokens) and max_tokens ({length})", field)
            try:
                eos = frozenset({self.tokenizer.eos_id})
                first = Request(ids, length, body.sampling(), eos, body.stops(), seed, alternatives)
                first.check(self.vocab_size)
            except ValueError as error:
                raise ApiError(400, str(error)) from None
            requests += [replace(first, seed=seed + i) for i in range(body.samples)]
        return PreparedRequest(requests, sum(map(len, prompts)), body.samples)
