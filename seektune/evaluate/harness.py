"""Adapter to lm-evaluation-harness: runs any task of PyPI's `lm-eval` (extra `eval`) on a model.

import lm_eval
from seektune.evaluate.harness import HarnessModel
lm_eval.simple_evaluate(HarnessModel.from_pretrained("runs/NAME/model"), tasks=["arc_easy"])
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    raise ImportError("lm-eval is not installed: pip install 'seektune[eval]'") from error

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.encode import render_chat_prompt
from seektune.data.chat_format.pieces import ChatText
from seektune.data.example import Example, continuation
from seektune.data.question import encode_continuations
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.evaluate.likelihood import Progress, likelihoods
from seektune.evaluate.perplexity import windows
from seektune.generate.detokenize import generate_all
from seektune.generate.mesh import DecodeMesh
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.variants import encoding_of

PART = 512
"""Requests after which answers are cached, so that a broken-off evaluation loses no more."""


class HarnessModel(LM):
    """A model and its tokenizer with the three request types of the harness.

    Texts are encoded as the harness's own `hf` model with `add_bos_token=True` does: BOS first, context and
    continuation in one piece, cut at the length of the context alone, and too long ones from the left. Of whole texts,
    BOS itself is not scored, as by `hf` without `add_bos_token`. Conversations
    (the harness's `apply_chat_template`) have the bytes of the model's chat format; control tokens that are spelled in
    a task's texts are plain characters, and a continuation is encoded by itself.
    """

    def __init__(
        self,
        model: DeepseekV4ForCausalLM | DecodeMesh,
        tokenizer: Tokenizer,
        batch_tokens: int = 8192,
        max_length: int = 4096,
        progress: Progress | None = None,
    ):
        """From a model and its tokenizer.

        Args:
            model: scored as it is; put it on its device first. One on several processes is led by rank 0.
            tokenizer: the one it was trained with.
            batch_tokens: most tokens, padding included, of one forward.
            max_length: most tokens that the model reads at once.
            progress: called with the number of requests that are answered and their total, for each kind of request.
        """
        super().__init__()
        self._model = model
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens
        self._max_length = max_length
        self._progress = progress
        self._chats: dict[str, ChatText] = {}
        self._encoding: EncodingName = encoding_of(model.config)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        batch_tokens: int = 8192,
        max_length: int = 4096,
    ) -> "HarnessModel":
        """From a checkpoint folder in any of our formats, or a Hub id.

        Raises:
            ValueError: the checkpoint cannot be read.
        """
        model = DeepseekV4ForCausalLM.from_pretrained(source, dtype=dtype, device=device)
        return cls(model, load_tokenizer(model.config.vocab_size), batch_tokens, max_length)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches of requests."""
        return f"deepseek-v4-{self._tokenizer.vocab_size}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The name of the chat format, for the harness's results."""
        return f"deepseek-v4-{self._encoding}" if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without `add_generation_prompt`, the last answer is left open.

        Raises:
            ValueError: as `render_chat_prompt`.
        """
        messages: list[dict[str, Any]] = [*chat_history]
        if not add_generation_prompt:
            messages[-1] = {**messages[-1], "wo_eos": True}
        chat = render_chat_prompt(messages, encoding=self._encoding)
        self._chats[chat.text] = chat
        return chat.text

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, in nats, and whether it is the first choice."""
        answers: list[tuple[float, bool]] = []
        for part in self._parts(requests):
            pairs = [request.args for request in part]
            sequences = [
                self._fitting(continuation(context, ending, repr(pair)[:80]))
                for (context, ending), pair in zip(self._encoded(pairs), pairs, strict=True)
            ]
            found = likelihoods(self._model, sequences, self._batch_tokens, self._tokenizer.pad_id)
            new = [(each.log, each.greedy) for each in found]
            self._keep("loglikelihood", pairs, new)
            answers += new
        return answers

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of whole texts, in nats, each token predicted once (see `perplexity.windows`)."""
        answers: list[float] = []
        for part in self._parts(requests):
            texts = [request.args[0] for request in part]
            new = self._text_likelihoods(texts)
            self._keep("loglikelihood_rolling", [(text,) for text in texts], new)
            answers += new
        return answers

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy continuations up to EOS, the first stop string or `max_gen_toks` tokens.

        Raises:
            ValueError: a task requests sampling, or `max_gen_toks` is not below `max_length`.
        """
        asked = [self._request(*request.args) for request in requests]
        rows = max(self._batch_tokens // self._max_length, 1)
        answers: list[str] = []
        for part in self._parts(requests):
            mine = asked[len(answers) : len(answers) + len(part)]
            with torch.inference_mode():
                completions, _ = generate_all(self._model, self._tokenizer, mine, rows, cpu_kernels=False)
            new = [completion.text for completion in completions]
            self._keep("generate_until", [request.args for request in part], new)
            answers += new
        return answers

    def _parts(self, requests: Sequence[Instance]) -> Iterator[Sequence[Instance]]:
        for start in range(0, len(requests), PART):
            yield requests[start : start + PART]
            if self._progress is not None:
                self._progress(min(start + PART, len(requests)), len(requests))

    def _keep(self, kind: str, requests: Sequence[Any], answers: Sequence[Any]) -> None:
        """Cache answers, if the harness was told to."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request, answer)

    def _encoded(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Ids of each context and continuation."""
        split = encode_continuations(self._tokenizer, pairs)
        for i, (context, ending) in enumerate(pairs):
            if (chat := self._chats.get(context)) is not None:
                split[i] = chat.ids(self._tokenizer), self._tokenizer.encode(ending)
        return split

    def _text_likelihoods(self, texts: Sequence[str]) -> list[float]:
        length = self._max_length
        owners = []
        sequences = []
        for i, ids in enumerate(self._tokenizer.encode_batch(texts)):
            for read, predicted in windows(ids, self._tokenizer.bos_id, length, length):
                owners.append(i)
                sequences.append(continuation(read, predicted, texts[i][:80]))
        found = likelihoods(self._model, sequences, self._batch_tokens, self._tokenizer.pad_id)
        together = groupby(zip(owners, found, strict=True), key=lambda pair: pair[0])
        return [sum(each.log for _, each in group) for _, group in together]

    def _request(self, prompt: str, options: dict[str, Any]) -> Request:
        asked: dict[str, Any] = dict(normalize_gen_kwargs(options))
        most = asked["max_gen_toks"]
        if asked["do_sample"]:
            raise ValueError("generation is greedy; set do_sample to false in the task's generation_kwargs")
        if most >= self._max_length:
            raise ValueError(f"max_gen_toks {most} must be less than max_length {self._max_length}")
        chat = self._chats.get(prompt)
        ids = [self._tokenizer.bos_id, *self._tokenizer.encode(prompt)] if chat is None else chat.ids(self._tokenizer)
        ids = ids[-(self._max_length - most) :]
        return Request(ids, most, GREEDY, frozenset({self._tokenizer.eos_id}), tuple(asked["until"]))

    def _fitting(self, sequence: Example) -> Example:
        """The end of a sequence; its last token is only predicted."""
        kept = slice(-(self._max_length + 1), None)
        # the first token that is kept is never predicted
        return Example(sequence.tokens[kept], [False, *sequence.taught[kept][1:]], sequence.name)
