"""Answers in several turns: tool calls of a response are run by a server, and the model continues with the results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from uuid import uuid4

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.encode import render_tool_results
from seektune.data.chat_format.pieces import encode_texts
from seektune.data.rollouts import RolloutError
from seektune.data.tokenizer import Tokenizer
from seektune.generate.engine import Decodes
from seektune.generate.request import Request
from seektune.io.text import one_line
from seektune.rewards.tool_server import ToolRequest, ToolServer
from seektune.run.responses import mode_of, read_message
from seektune.run.sampled_answers import Progress, SampledAnswer, sample_responses

SEED_STEP = 0x9E3779B97F4A7C15
"""Between the seeds of an answer's responses, so that no other answer has them."""


@dataclass(frozen=True)
class ToolTurns:
    """What happens between the responses of an answer."""

    server: ToolServer
    max_turns: int
    """Maximum responses of an answer."""
    tokenizer: Tokenizer
    encoding: EncodingName
    length: int
    """Maximum tokens of a prompt and its answer."""


def sample_answers(
    model: Decodes, requests: Sequence[Request], progress: Progress, tools: ToolTurns | None = None
) -> list[SampledAnswer]:
    """The answers to requests; with tools, responses that call some are continued with their results.

    Raises:
        RolloutError: the tool server failed.
    """
    answers = [SampledAnswer([], []) for _ in requests]
    sample_responses(model, requests, answers, progress)
    pending = [_Pending(uuid4().hex, each, answer) for each, answer in zip(requests, answers, strict=True)]
    for turn in range(1, 1 if tools is None else tools.max_turns):
        assert tools is not None
        pending = _with_results(tools, pending, turn)
        if not pending:
            break
        sample_responses(model, [each.request for each in pending], [each.answer for each in pending], progress)
    return answers


class _Pending(NamedTuple):
    """An answer that may get another response."""

    session: str
    """No other answer has it, of this run or another."""
    request: Request
    """For its last response."""
    answer: SampledAnswer


def _with_results(tools: ToolTurns, pending: Sequence[_Pending], turn: int) -> list[_Pending]:
    """The answers whose last response calls tools, with the results, and requests for their next responses."""
    asked = [ToolRequest(each.session, turn, _calls(tools, each.request, each.answer)) for each in pending]
    calling = [(each, own) for each, own in zip(pending, asked, strict=True) if own.calls]
    try:
        results = tools.server([own for _, own in calling])
    except (OSError, ValueError) as error:
        raise RolloutError(one_line(error)) from error
    found = []
    for (each, own), texts in zip(calling, results, strict=True):
        each.answer.calls += len(own.calls)
        following = _continued(tools, each.request, each.answer, texts)
        if following is not None:
            found.append(each._replace(request=following))
    return found


def _calls(tools: ToolTurns, request: Request, answer: SampledAnswer) -> Sequence[Mapping[str, Any]]:
    """The tool calls of the last response; none if it was cut off or is damaged."""
    if answer.truncated:
        return []
    ids = [token for token in answer.ids[answer.response :] if token not in request.stop_ids]
    mode = mode_of(request.prompt, tools.tokenizer)
    message = read_message(tools.tokenizer.decode(ids), mode, tools.encoding)
    return [] if message is None else message["tool_calls"]


def _continued(tools: ToolTurns, request: Request, answer: SampledAnswer, results: Sequence[str]) -> Request | None:
    """The request for the next response, after the results are appended; None if no token of it would fit."""
    mode = mode_of(request.prompt, tools.tokenizer)
    assert mode is not None, "the response was read in this mode"
    ((ids, _),) = encode_texts([render_tool_results(results, mode, tools.encoding)], tools.tokenizer)
    response = answer.ids[answer.response :]
    prompt = [*request.prompt, *response, *ids]
    room = min(request.max_new_tokens - len(response), tools.length - len(prompt))
    if room < 1:
        answer.truncated = True
        return None
    answer.add_results(ids)
    return replace(request, prompt=prompt, max_new_tokens=room, seed=request.seed + SEED_STEP)
