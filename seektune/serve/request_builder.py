"""Turns API requests into generation requests: tokenizes prompts and checks lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from seektune.data.chat_format.encode import encode_messages
from seektune.data.chat_format.tokens import EOS
from seektune.data.tokenizer import Tokenizer, check_unicode
from seektune.generate.request import Request
from seektune.serve.errors import ApiError
from seektune.serve.limits import Limits
from seektune.serve.schema import ChatRequest, CompletionRequest, GenerationRequest

COMPLETION_TOKENS = 16
"""Default `max_tokens` of `/v1/completions`, as in OpenAI's API; a chat may fill the context."""


@dataclass(frozen=True)
class PreparedRequest:
    """An API request as generation requests."""

    requests: list[Request]
    """`n` for each prompt, prompt by prompt."""
    prompt_tokens: int
    thinking: bool = False


@dataclass(frozen=True)
class RequestBuilder:
    """Builds generation requests with the server's tokenizer and limits."""

    tokenizer: Tokenizer
    vocab_size: int
    limits: Limits
    thinking: bool
    """Whether responses begin with reasoning by default."""

    def chat(self, body: ChatRequest) -> PreparedRequest:
        """Prepare a chat.

        Raises:
            ApiError: the messages do not follow the chat format, or are too long.
        """
        thinking = body.thinks(self.thinking)
        mode = "thinking" if thinking else "chat"
        try:
            text = encode_messages(body.conversation(), mode, reasoning_effort=body.effort())
            check_unicode(text)
        except ValueError as error:
            raise ApiError(400, str(error), "messages") from None
        if text.endswith(EOS) or body.messages[-1].get("role") == "system":
            raise ApiError(400, "the last message must have the role user or tool", "messages")
        max_tokens = body.max_tokens or body.max_completion_tokens
        return self._prepare(body, [self.tokenizer.encode_prompt(text)], max_tokens, body.alternatives, thinking)

    def completion(self, body: CompletionRequest) -> PreparedRequest:
        """Prepare text prompts.

        Raises:
            ApiError: an id is outside the vocabulary, or a prompt is too long.
        """
        prompts = []
        try:
            for prompt in body.prompts():
                if isinstance(prompt, str):
                    check_unicode(prompt)
                    prompt = [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
                prompts.append(prompt)
        except ValueError as error:
            raise ApiError(400, str(error), "prompt") from None
        return self._prepare(body, prompts, body.max_tokens or COMPLETION_TOKENS, body.alternatives)

    def _prepare(
        self,
        body: GenerationRequest,
        prompts: Sequence[list[int]],
        max_tokens: int | None,
        alternatives: int,
        thinking: bool = False,
    ) -> PreparedRequest:
        if len(prompts) * body.samples > self.limits.max_num_seqs:
            raise ApiError(400, f"at most {self.limits.max_num_seqs} completions per request (prompts times n)", "n")
        seed = body.first_seed()
        requests = []
        for ids in prompts:
            length = max_tokens or max(self.limits.max_model_len - len(ids), 1)
            if len(ids) + length > self.limits.max_model_len:
                raise ApiError(
                    400,
                    f"the prompt ({len(ids)} tokens) and max_tokens ({length}) exceed the server's limit of "
                    f"{self.limits.max_model_len} tokens",
                    "messages" if isinstance(body, ChatRequest) else "prompt",
                    "context_length_exceeded",
                )
            try:
                eos = frozenset({self.tokenizer.eos_id})
                first = Request(ids, length, body.sampling(), eos, body.stops(), seed, alternatives)
                first.check(self.vocab_size)
            except ValueError as error:
                raise ApiError(400, str(error)) from None
            requests += [replace(first, seed=seed + i) for i in range(body.samples)]
        return PreparedRequest(requests, sum(map(len, prompts)), thinking)
