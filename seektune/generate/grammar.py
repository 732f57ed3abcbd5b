"""Grammars that a sequence has to follow: compiled by llguidance once, then followed token by token.

Shapes: V vocabulary.
"""

import re
from functools import lru_cache

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate.answer_grammar import MOST_CHARACTERS

MOST_GRAMMARS = 32
"""Compiled grammars that are kept; one may take tens of megabytes."""
LIMITS = LLParserLimits(
    max_items_in_row=10_000,
    initial_lexer_fuel=300_000,
    step_lexer_fuel=200_000,
    max_lexer_states=10_000,
    verbose_errors=False,
)
"""Bounds on the work of compiling a grammar and of each step, which any client may ask for."""
TRIED = 4
"""Tokens that are followed to see whether a grammar is too expensive."""
TOO_EXPENSIVE = "the answer's grammar became too expensive to follow; simplify the schema or the regular expression"
"""The message for completions that end with `error`."""
WORD = 32
"""Tokens whose bits llguidance writes into one integer."""
SHOWN = 200
"""Maximum characters of llguidance's message in an error."""


class Grammar:
    """A compiled grammar; another process that receives it compiles it again."""

    def __init__(self, text: str, vocab_size: int, limits: LLParserLimits = LIMITS):
        """Compile a text in llguidance's variant of Lark.

        Raises:
            ValueError: it has a mistake, or is too expensive.
        """
        self.text = text
        self.vocab_size = vocab_size
        self._limits = limits
        self._matcher = self._compiled()

    def __reduce__(self) -> tuple[object, ...]:
        return compile_grammar, (self.text, self.vocab_size)

    def start(self) -> "GrammarState":
        """The state of a sequence before its first token."""
        return GrammarState(self)

    def matcher(self) -> LLMatcher:
        """A matcher at the beginning; all share the automaton that they extend as they go."""
        return self._matcher.deep_copy()

    def renew(self) -> None:
        """Begin a new automaton, for the case that the sequences so far have filled the old one."""
        self._matcher = self._compiled()

    def _compiled(self) -> LLMatcher:
        matcher = LLMatcher(_vocabulary(self.vocab_size), self.text, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise ValueError(_reason(matcher.get_error()))
        return matcher


class GrammarState:
    """How far one sequence has followed a grammar."""

    def __init__(self, grammar: Grammar):
        self.failed = False
        """Whether following the grammar became too expensive; from then on every token is allowed."""
        self._grammar = grammar
        self._matcher = grammar.matcher()
        self._tokens: list[int] = []
        self._words = torch.empty(-(-grammar.vocab_size // WORD), dtype=torch.int32)
        self._is_computed = False

    def allowed(self, device: torch.device) -> Tensor:
        """Whether each token may come next, bool `[V]`; never false for all."""
        if not self._is_computed:
            self._compute()
        shifts = torch.arange(WORD, dtype=torch.int32, device=device)
        bits = (self._words.to(device).unsqueeze(1) >> shifts) & 1
        return bits.bool().flatten()[: self._grammar.vocab_size]

    def accept(self, token: int) -> None:
        """Follow the grammar by a token."""
        self._tokens.append(token)
        self._is_computed = False
        if not self.failed and not self._matcher.consume_token(token):
            self._start_again()

    def _compute(self) -> None:
        if not self.failed and not self._fill():
            self._start_again()
            self.failed = self.failed or not self._fill()
        if self.failed:
            self._words.fill_(-1)
        self._is_computed = True

    def _fill(self) -> bool:
        """Write the mask; returns whether that was possible."""
        self._matcher.unsafe_compute_mask_ptr(self._words.data_ptr(), self._words.nbytes)
        return not self._matcher.is_error() and bool(self._words.any())

    def _start_again(self) -> None:
        """Follow all tokens so far with a new automaton."""
        self._grammar.renew()
        self._matcher = self._grammar.matcher()
        self.failed = not self._matcher.consume_tokens(self._tokens)


@lru_cache(MOST_GRAMMARS)
def compile_grammar(text: str, vocab_size: int) -> Grammar:
    """Compile a grammar, and follow it by a few tokens; takes up to a second, without the interpreter's lock.

    Raises:
        ValueError: it is too long or too expensive, has a mistake, or no text matches it.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the grammar has {len(text)} characters; at most {MOST_CHARACTERS} are compiled")
    grammar = Grammar(text, vocab_size)
    state = grammar.start()
    for _ in range(TRIED):
        token = int(state.allowed(torch.device("cpu")).nonzero()[-1])
        if state.failed:
            raise ValueError("no text matches it, or it is too complex")
        state.accept(token)
    return grammar


@lru_cache(2)
def _vocabulary(vocab_size: int) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_TokenBytes(load_tokenizer(vocab_size))), n_vocab=vocab_size)


class _TokenBytes:
    """A tokenizer in the form that llguidance asks for; control tokens match no text of a grammar."""

    def __init__(self, tokenizer: Tokenizer):
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.bytes_of(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.control_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode())


def _reason(message: str) -> str:
    """llguidance's message in one line, without the quoted grammar."""
    message = re.split(r"\n *\d+ \| ", message)[0]
    message = re.sub(r"^at \d+\(\d+\): ", "", message)
    message = message.removeprefix("failed to compile JSON schema: ")
    message = re.sub(r"^Unimplemented keys: \[(.*)\]", r"no grammar can follow \1", message)
    error = message.rpartition("\nerror: ")[2]
    return " ".join(error.split())[:SHOWN]
