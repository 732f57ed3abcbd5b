"""Answers in several turns: what is sent to a tool server, what is appended, and the bounds."""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from seektune.data.chat_format.encode import render_chat_prompt
from seektune.data.chat_format.pieces import encode_texts
from seektune.data.rollouts import RolloutError
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate.request import Request
from seektune.rewards.json_server import JsonServer
from seektune.rewards.tool_server import ToolServer
from seektune.run import tool_turns
from seektune.run.responses import mode_of
from seektune.run.sampled_answers import SampledAnswer
from seektune.run.tool_turns import ToolTurns, sample_answers

ASK = {"role": "user", "content": "2 + 2?"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
MODEL: Any = None


def call(*numbers: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "add", "arguments": json.dumps({"xs": numbers})}}


class Adder(BaseHTTPRequestHandler):
    """Adds the numbers of each call, and answers in the reverse order."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.bodies.append(body)
        found = [
            {
                "role": "tool",
                "tool_call_id": each["id"],
                "content": str(sum(json.loads(each["function"]["arguments"])["xs"])),
            }
            for each in body["tool_calls"]
        ]
        self.send_response(server.status)
        self.end_headers()
        self.wfile.write(json.dumps(server.answer or {"messages": found[::-1]}).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def adder() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Adder)
    server.bodies = []
    server.status = 200
    server.answer = None
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(2048)


@pytest.fixture
def tools(adder: Any, tokenizer: Tokenizer) -> ToolTurns:
    server = JsonServer("tool", "calls", f"http://127.0.0.1:{adder.server_port}/", 60, 0)
    return ToolTurns(ToolServer(server, 100, 4), 3, tokenizer, "0731", length=2000)


def tokens(text: Any, tokenizer: Tokenizer) -> list[int]:
    ((ids, _),) = encode_texts([text], tokenizer)
    return ids


def request(tokenizer: Tokenizer, seed: int = 5, **changes: Any) -> Request:
    prompt = tokens(render_chat_prompt([ASK], TOOLS, encoding="0731"), tokenizer)
    return replace(Request(prompt, 600, stop_ids=frozenset({tokenizer.eos_id}), seed=seed), **changes)


def written(message: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    """The tokens of a response, as a model would write it."""
    before = tokens(render_chat_prompt([ASK], TOOLS, encoding="0731"), tokenizer)
    rest = [{**ASK}, {"role": "assistant", **message}, ASK]
    both = tokens(render_chat_prompt(rest, TOOLS, encoding="0731"), tokenizer)
    after = both[len(before) :]
    return after[: after.index(tokenizer.eos_id) + 1]


class Script:
    """The responses of each turn, in the order of requests, in place of those of a model."""

    def __init__(self) -> None:
        self.turns: list[list[list[int]]] = []
        self.requests: list[Sequence[Request]] = []

    def sample(self, _: Any, requests: Sequence[Request], answers: Sequence[SampledAnswer], progress: Any) -> None:
        self.requests.append(requests)
        for asked, answer, ids in zip(requests, answers, self.turns.pop(0), strict=True):
            for token in ids[: asked.max_new_tokens]:
                answer.add(token, -1.0)
            answer.truncated = asked.max_new_tokens < len(ids)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    monkeypatch.setattr(tool_turns, "sample_responses", made.sample)
    return made


def test_results_are_appended_untaught_and_the_model_continues(
    tools: ToolTurns, tokenizer: Tokenizer, adder: Any, script: Script
) -> None:
    first = written({"content": "", "tool_calls": [call(1, 2), call(3, 4)]}, tokenizer)
    last = written({"content": "done"}, tokenizer)
    script.turns += [[last, first], [last]]
    asked = [request(tokenizer, 4), request(tokenizer, 5)]
    plain, called = sample_answers(MODEL, asked, lambda: None, tools)
    assert plain.ids == last
    assert (plain.calls, plain.sampled, called.calls) == (0, len(last), 2)
    (body,) = adder.bodies
    assert body["turn"] == 1
    assert [each["id"] for each in body["tool_calls"]] == ["call_1_0", "call_1_1"]
    conversation = [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": body["tool_calls"]},
        *({"role": "tool", "tool_call_id": f"call_1_{n}", "content": text} for n, text in enumerate(("3", "7"))),
    ]
    whole = tokens(render_chat_prompt(conversation, TOOLS, encoding="0731"), tokenizer)
    assert [*asked[1].prompt, *called.ids] == whole + last
    assert called.sampled == len(first) + len(last)
    results = len(whole) - len(asked[1].prompt) - len(first)
    assert called.taught == [True] * len(first) + [False] * results + [True] * len(last)
    assert called.logprobs[len(first) : -len(last)] == [0.0] * results
    assert called.ids[called.response :] == last
    following = script.requests[1][0]
    assert list(following.prompt) == whole
    assert following.max_new_tokens == 600 - len(first)
    assert following.seed % 2**64 not in (4, 5, 6)


def test_turns_decode_what_is_new_alone(
    tools: ToolTurns, tokenizer: Tokenizer, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    calling = written({"content": "", "tool_calls": [call(1)]}, tokenizer)
    last = written({"content": "done"}, tokenizer)
    script.turns += [[calling], [calling], [last]]
    decoded: list[int] = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    sample_answers(MODEL, [request(tokenizer)], lambda: None, tools)
    assert max(decoded) == len(calling) - 1, "without EOS; not the conversation before it"
    assert len(script.requests[2][0].prompt) > 2 * len(calling)


@pytest.mark.parametrize("mode", ["chat", "thinking"])
def test_the_mode_is_read_from_the_end_of_a_prompt(tokenizer: Tokenizer, mode: str) -> None:
    prompt = tokens(render_chat_prompt([ASK], TOOLS, mode, encoding="0731"), tokenizer)
    assert mode_of(prompt, tokenizer) == mode
    assert mode_of(tuple(prompt[:-1]), tokenizer) is None
    spelled = tokenizer.encode(tokenizer.decode(prompt))
    assert mode_of(spelled, tokenizer) is None, "letters are no control tokens"


def test_turns_are_bounded_and_cut_responses_call_nothing(
    tools: ToolTurns, tokenizer: Tokenizer, adder: Any, script: Script
) -> None:
    calling = written({"content": "", "tool_calls": [call(1)]}, tokenizer)
    script.turns += [[calling], [calling], [calling]]
    (answer,) = sample_answers(MODEL, [request(tokenizer)], lambda: None, tools)
    assert [body["turn"] for body in adder.bodies] == [1, 2]
    (session,) = {body["session"] for body in adder.bodies}
    assert not answer.truncated
    adder.bodies.clear()
    script.turns += [[calling, calling], [calling, calling], [calling, calling]]
    sample_answers(MODEL, [request(tokenizer), request(tokenizer)], lambda: None, tools)
    assert len({session, *(body["session"] for body in adder.bodies)}) == 3, "of answers with one seed, too"
    adder.bodies.clear()
    script.turns += [[calling]]
    (cut,) = sample_answers(MODEL, [request(tokenizer, max_new_tokens=4)], lambda: None, tools)
    assert (cut.truncated, adder.bodies) == (True, [])


@pytest.mark.parametrize("bound", ["tokens of the row", "sampled tokens"])
def test_an_answer_without_room_for_another_response_is_cut_off(
    tools: ToolTurns, tokenizer: Tokenizer, script: Script, bound: str
) -> None:
    calling = written({"content": "", "tool_calls": [call(1)]}, tokenizer)
    asked = request(tokenizer)
    if bound == "tokens of the row":
        tools = replace(tools, length=len(asked.prompt) + len(calling) + 3)
    else:
        asked = replace(asked, max_new_tokens=len(calling))
    script.turns += [[calling]]
    (answer,) = sample_answers(MODEL, [asked], lambda: None, tools)
    assert answer.truncated
    assert answer.ids == calling
    assert answer.calls == 1, "its calls were run"


def test_long_results_are_cut_at_whole_characters(
    tools: ToolTurns, tokenizer: Tokenizer, adder: Any, script: Script
) -> None:
    calling = written({"content": "", "tool_calls": [call(1)]}, tokenizer)
    last = written({"content": "done"}, tokenizer)
    adder.answer = {"messages": [{"role": "tool", "tool_call_id": "call_1_0", "content": "é" * 80}]}
    script.turns += [[calling], [last]]
    tools = replace(tools, server=replace(tools.server, max_result_bytes=7))
    (answer,) = sample_answers(MODEL, [request(tokenizer)], lambda: None, tools)
    assert tokenizer.decode(answer.ids).count("é") == 3


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (404, None, r"the tool server http\S+ refuses the calls: HTTP 404$"),
        (500, None, r"the tool server http\S+ failed at the only try: HTTP Error 500"),
        (200, {"messages": []}, r'must answer with \{"messages": .*one for each call, not \{"messages": \[\]\}$'),
        (200, {"messages": [{"role": "tool", "tool_call_id": "call_1_0", "content": 3}]}, "one for each call, not"),
        (200, ["x"], r'one for each call, not \["x"\]$'),
        (200, {"messages": [{"role": "tool", "tool_call_id": "call_1_0", "content": x} for x in "ab"]}, "one for each"),
    ],
)
def test_a_failing_server_is_one_line(
    tools: ToolTurns, tokenizer: Tokenizer, adder: Any, script: Script, status: int, answer: Any, said: str
) -> None:
    adder.status = status
    adder.answer = answer
    script.turns += [[written({"content": "", "tool_calls": [call(1)]}, tokenizer)]]
    with pytest.raises(RolloutError, match=said) as caught:
        sample_answers(MODEL, [request(tokenizer)], lambda: None, tools)
    assert "\n" not in str(caught.value)
