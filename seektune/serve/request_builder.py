"""Requests of the API into requests of the decoding: prompts as ids, and how much room is left for the answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from seektune.data.chat_format.encode import encode_messages
from seektune.data.chat_format.tokens import EOS
from seektune.data.tokenizer import Tokenizer
from seektune.generate.request import Request
from seektune.io.text import check_unicode
from seektune.serve.errors import ApiError
from seektune.serve.limits import Limits
from seektune.serve.schema import ChatRequest, CompletionRequest, GenerationRequest

COMPLETION_TOKENS = 16
"""Longest answer of `/v1/completions` unless told otherwise, as OpenAI has it; a chat's takes the room there is."""


@dataclass(frozen=True)
class GenerationOrder:
    """All answers that a client asks for, and what their prompts cost."""

    requests: list[Request]
    """`n` for each prompt, prompt by prompt."""
    prompt_tokens: int
    thinking: bool = False


@dataclass(frozen=True)
class RequestBuilder:
    """Knows the tokenizer and what is allowed."""

    tokenizer: Tokenizer
    vocab_size: int
    limits: Limits
    thinking: bool
    """Whether conversations begin with reasoning unless told otherwise."""

    def chat(self, asked: ChatRequest) -> GenerationOrder:
        """A conversation.

        Raises:
            ApiError: it does not follow the format, or is too long.
        """
        thinking = asked.thinks(self.thinking)
        mode = "thinking" if thinking else "chat"
        try:
            text = encode_messages(asked.conversation(), mode, reasoning_effort=asked.effort())
            check_unicode(text)
        except ValueError as error:
            raise ApiError(400, str(error), "messages") from None
        if text.endswith(EOS) or asked.messages[-1].get("role") == "system":
            raise ApiError(
                400, "the last message must be one that asks for an answer: a user's or a tool's", "messages"
            )
        most = asked.max_tokens or asked.max_completion_tokens
        return self._order(asked, [self.tokenizer.encode_prompt(text)], most, asked.alternatives, thinking)

    def completion(self, asked: CompletionRequest) -> GenerationOrder:
        """Texts to go on with.

        Raises:
            ApiError: an id is outside the vocabulary, or a prompt too long.
        """
        prompts = []
        try:
            for prompt in asked.prompts():
                if isinstance(prompt, str):
                    check_unicode(prompt)
                    prompt = [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
                prompts.append(prompt)
        except ValueError as error:
            raise ApiError(400, str(error), "prompt") from None
        return self._order(asked, prompts, asked.max_tokens or COMPLETION_TOKENS, asked.alternatives)

    def _order(
        self,
        asked: GenerationRequest,
        prompts: Sequence[list[int]],
        most: int | None,
        alternatives: int,
        thinking: bool = False,
    ) -> GenerationOrder:
        if len(prompts) * asked.answers > self.limits.max_num_seqs:
            raise ApiError(400, f"at most {self.limits.max_num_seqs} answers can be asked for at once", "n")
        seed = asked.first_seed()
        requests = []
        for ids in prompts:
            length = most or max(self.limits.max_model_len - len(ids), 1)
            if len(ids) + length > self.limits.max_model_len:
                raise ApiError(
                    400,
                    f"the prompt has {len(ids)} tokens; with an answer of up to {length} that is more than the "
                    f"{self.limits.max_model_len} of this server",
                    "messages" if isinstance(asked, ChatRequest) else "prompt",
                    "context_length_exceeded",
                )
            try:
                eos = frozenset({self.tokenizer.eos_id})
                first = Request(ids, length, asked.sampling(), eos, asked.stops(), seed, alternatives)
                first.check(self.vocab_size)
            except ValueError as error:
                raise ApiError(400, str(error)) from None
            requests += [replace(first, seed=seed + i) for i in range(asked.answers)]
        return GenerationOrder(requests, sum(map(len, prompts)), thinking)
