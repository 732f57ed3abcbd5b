"""Adapter to lm-evaluation-harness: runs any task of PyPI's `lm-eval` (extra `eval`) on a model.

import lm_eval
from seektune.evaluate.harness import HarnessModel
lm_eval.simple_evaluate(HarnessModel.from_pretrained("runs/NAME/model"), tasks=["arc_easy"])
"""

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

from seektune.data.example import Example, continuation
from seektune.data.question import encode_continuations
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.evaluate.likelihood import likelihoods
from seektune.evaluate.perplexity import windows
from seektune.generate.detokenize import generate_all
from seektune.generate.mesh import DecodeMesh
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.model.causal_lm import DeepseekV4ForCausalLM


class HarnessModel(LM):
    """A model and its tokenizer with the three request types of the harness.

    Texts are encoded as the harness's own `hf` model with `add_bos_token=True` does: BOS first, context and
    continuation in one piece, cut at the length of the context alone, and too long ones from the left.
    """

    def __init__(
        self,
        model: DeepseekV4ForCausalLM | DecodeMesh,
        tokenizer: Tokenizer,
        batch_tokens: int = 8192,
        max_length: int = 4096,
    ):
        """From a model and its tokenizer.

        Args:
            model: scored as it is; put it on its device first. One on several processes is led by rank 0.
            tokenizer: the one it was trained with.
            batch_tokens: most tokens, padding included, of one forward.
            max_length: most tokens that the model reads at once.
        """
        super().__init__()
        self._model = model
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens
        self._max_length = max_length

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

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, in nats, and whether it is the first choice."""
        pairs = [request.args for request in requests]
        split = encode_continuations(self._tokenizer, pairs)
        sequences = [
            self._fitting(continuation(context, ending, repr(pair)[:80]))
            for (context, ending), pair in zip(split, pairs, strict=True)
        ]
        found = likelihoods(self._model, sequences, self._batch_tokens, self._tokenizer.pad_id)
        answers = [(each.log, each.greedy) for each in found]
        for pair, answer in zip(pairs, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of whole texts, in nats, each token predicted once (see `perplexity.windows`)."""
        texts = [request.args[0] for request in requests]
        length = self._max_length
        bos_id = self._tokenizer.bos_id
        owners = []
        sequences = []
        for i, ids in enumerate(self._tokenizer.encode_batch(texts)):
            for read, predicted in windows(ids, bos_id, length, length):
                owners.append(i)
                sequences.append(continuation(read, predicted, texts[i][:80]))
        found = likelihoods(self._model, sequences, self._batch_tokens, self._tokenizer.pad_id)
        together = groupby(zip(owners, found, strict=True), key=lambda pair: pair[0])
        answers = [sum(each.log for _, each in group) for _, group in together]
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
        return answers

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy continuations up to EOS, the first stop string or `max_gen_toks` tokens.

        Raises:
            ValueError: a task requests sampling, or `max_gen_toks` is not below `max_length`.
        """
        asked = [self._request(*request.args) for request in requests]
        rows = max(self._batch_tokens // self._max_length, 1)
        with torch.inference_mode():
            answers, _ = generate_all(self._model, self._tokenizer, asked, rows, cpu_kernels=False)
        texts = [answer.text for answer in answers]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _request(self, prompt: str, options: dict[str, Any]) -> Request:
        asked: dict[str, Any] = dict(normalize_gen_kwargs(options))
        most = asked["max_gen_toks"]
        if asked["do_sample"]:
            raise ValueError("generation is greedy; set do_sample to false in the task's generation_kwargs")
        if most >= self._max_length:
            raise ValueError(f"max_gen_toks {most} must be less than max_length {self._max_length}")
        ids = [self._tokenizer.bos_id, *self._tokenizer.encode(prompt)][-(self._max_length - most) :]
        return Request(ids, most, GREEDY, frozenset({self._tokenizer.eos_id}), tuple(asked["until"]))

    def _fitting(self, sequence: Example) -> Example:
        """The end of a sequence; its last token is only predicted."""
        kept = slice(-(self._max_length + 1), None)
        # the first token that is kept is never predicted
        return Example(sequence.tokens[kept], [False, *sequence.taught[kept][1:]], sequence.name)
