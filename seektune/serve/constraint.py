"""The grammar that a request asks for: its answer's format, tool calls, or either of both."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from seektune.data.chat_format.encodings import CallTags
from seektune.data.chat_format.message import shown
from seektune.data.tokenizer import Tokenizer
from seektune.generate.answer_grammar import answer_grammar
from seektune.generate.grammar import Grammar, compile_grammar
from seektune.generate.tool_grammar import CallMarkup, call_rules
from seektune.io.text import one_line
from seektune.serve.errors import ApiError
from seektune.serve.schema import ChatRequest, CompletionRequest


@dataclass(frozen=True)
class Constraint:
    """A grammar that is not compiled yet."""

    text: str
    field: str
    """The field of the request that asks for it."""

    def compiled(self, vocab_size: int) -> Grammar:
        """The compiled grammar.

        Raises:
            ApiError: it is refused.
        """
        with _refusals(self.field):
            return compile_grammar(self.text, vocab_size)


def text_constraint(body: CompletionRequest, tokenizer: Tokenizer) -> Constraint | None:
    """What completions of a text prompt have to follow.

    Raises:
        ApiError: it is refused.
    """
    if body.format_field is None:
        return None
    with _refusals(body.format_field):
        rules = [body.answer_rules()]
        return Constraint(answer_grammar(rules, tokenizer, thinking=False), body.format_field)


def chat_constraint(body: ChatRequest, tags: CallTags, tokenizer: Tokenizer, thinking: bool) -> Constraint | None:
    """What responses to a chat have to follow: where a format is asked for, a tool may be called in its place.

    Raises:
        ApiError: it is refused.
    """
    field = "tool_choice" if body.requires_call else body.format_field
    if field is None:
        return None
    with _refusals(field):
        answers = [] if body.requires_call else [body.answer_rules()]
        if body.requires_call or body.offered_tools():
            several = body.named_tool is None and body.parallel_tool_calls is not False
            answers.append(call_rules(_functions(body), CallMarkup(tags, tokenizer), several))
        return Constraint(answer_grammar(answers, tokenizer, thinking), field)


def _functions(body: ChatRequest) -> list[Mapping[str, Any]]:
    """The functions that may be called."""
    functions = [tool["function"] for tool in body.offered_tools()]
    found = [each for each in functions if body.named_tool in (None, each["name"])]
    if not functions:
        raise ValueError("a call is required, but the request has no tools")
    if not found:
        raise ValueError(f"{shown(body.named_tool)} is not one of the tools")
    return found


@contextmanager
def _refusals(field: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ApiError(400, f"{field}: {one_line(error)}", field) from None
