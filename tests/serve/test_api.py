"""What the server answers, over HTTP, in OpenAI's form."""

import json
import socket
import threading
import time
from typing import Any

import pytest

from seektune import encode_messages
from seektune.data.chat_format.tool_calls import write_calls
from seektune.generate.detokenize import answer_all
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY, Sampling
from seektune.serve.app import Served
from seektune.serve.limits import Limits

from .live import Live, live, parrot

QUESTION = [{"role": "user", "content": "2+2?"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def said(model, tokenizer, ids: list[int], sampling: Sampling = GREEDY, most: int = 6, seed: int = 0) -> str:
    request = Request(ids, most, sampling, frozenset({tokenizer.eos_id}), seed=seed)
    return answer_all(model, tokenizer, [request])[0][0].text


def test_models_and_health(toy: Live) -> None:
    assert toy.health() == {"status": "ok", "running": 0, "waiting": 0}
    listed = toy.ask("GET", "/v1/models").body
    assert [(each["id"], each["parent"], each["max_model_len"]) for each in listed["data"]] == [
        ("toy", None, 2000),
        ("other", "toy", 2000),
    ]
    assert toy.ask("GET", "/v1/models/other").body == listed["data"][1]


def test_a_conversation_is_answered(toy: Live, model, other, tokenizer) -> None:
    prompt = tokenizer.encode_prompt(encode_messages(QUESTION))
    for name, which in (("toy", model), ("other", other)):
        body = toy.post(CHAT, model=name, messages=QUESTION, max_tokens=6, temperature=0).body
        (choice,) = body["choices"]
        assert choice["message"] == {"role": "assistant", "content": said(which, tokenizer, prompt)}
        assert choice["finish_reason"] == "length"
        assert body["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": 6, "total_tokens": len(prompt) + 6}
        assert (body["object"], body["model"]) == ("chat.completion", name)


def test_a_stream_is_the_whole_in_pieces(toy: Live) -> None:
    asked = {"messages": QUESTION, "max_tokens": 30, "seed": 3, "n": 3, "logprobs": True, "top_logprobs": 2}
    whole = toy.post(CHAT, **asked).body
    answer = toy.post(CHAT, **asked, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = answer.events()
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    for i, expected in enumerate(whole["choices"]):
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == i]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(each["delta"].get("content", "") for each in mine) == expected["message"]["content"]
        told = [token for each in mine for token in (each["logprobs"] or {"content": []})["content"]]
        assert told == expected["logprobs"]["content"]
        assert [each["finish_reason"] for each in mine if each["finish_reason"]] == [expected["finish_reason"]]
        assert all(len(token["top_logprobs"]) == 2 for token in told)
        text = b"".join(bytes(token["bytes"]) for token in told).decode(errors="replace")
        assert text == expected["message"]["content"]
    assert len({choice["message"]["content"] for choice in whole["choices"]}) == 3
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


@pytest.mark.slow
def test_texts_are_continued(toy: Live, model, tokenizer) -> None:
    texts = ["The man", "A <think>"]
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    body = toy.post(TEXT, prompt=texts, max_tokens=5, temperature=0, n=2, logprobs=1).body
    expected = [said(model, tokenizer, each, most=5) for each in ids for _ in range(2)]
    assert [choice["text"] for choice in body["choices"]] == expected
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["text_offset"][0] == 0
    assert [list(best.values()) for best in logprobs["top_logprobs"]] == [[each] for each in logprobs["token_logprobs"]]
    assert body["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert toy.post(TEXT, prompt=ids, max_tokens=5, temperature=0).body["choices"][1]["text"] == expected[2]
    chunks = toy.post(TEXT, prompt=ids[0], max_tokens=5, temperature=0, stream=True).events()
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected[0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len(toy.post(TEXT, prompt="x", temperature=0, logprobs=0).body["choices"][0]["logprobs"]["tokens"]) == 16


@pytest.mark.slow
def test_offsets_are_places_of_the_text(toy_model, tokenizer) -> None:
    text = "a 你🐋b, c"
    ids = tokenizer.encode(text)
    read = [b"".join(map(tokenizer.bytes_of, ids[:i])) for i in range(len(ids))]
    places = [len(part.decode(errors="ignore")) for part in read]
    assert len(set(places)) < len(places)  # a character of several tokens
    with live(
        Served({"parrot": parrot(toy_model(vocab_size=512), tokenizer, text + "<｜end▁of▁sentence｜>")}, tokenizer)
    ) as bird:
        asked = {"prompt": "x", "logprobs": 1, "max_tokens": 40, "stop": "🐋b!"}
        (choice,) = bird.post(TEXT, **asked).body["choices"]
        assert choice["text"] == text
        assert choice["logprobs"]["text_offset"] == places
        chunks = [chunk["choices"][0] for chunk in bird.post(TEXT, **asked, stream=True).events()]
        assert [place for chunk in chunks for place in chunk["logprobs"]["text_offset"]] == places


@pytest.mark.slow
def test_seeds_and_sampling_are_those_of_generate(toy: Live, model, tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("The man")]
    options = {"temperature": 0.7, "top_p": 0.9, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.1}
    body = toy.post(TEXT, prompt="The man", max_tokens=8, seed=11, n=2, **options).body
    expected = [said(model, tokenizer, ids, Sampling(**options), 8, seed) for seed in (11, 12)]
    assert [choice["text"] for choice in body["choices"]] == expected
    free = {toy.post(TEXT, prompt="The man", max_tokens=8).body["choices"][0]["text"] for _ in range(3)}
    assert len(free) > 1


def test_an_answer_ends_before_a_stop_text(toy: Live) -> None:
    whole = toy.post(TEXT, prompt="The man", max_tokens=9, temperature=0).body["choices"][0]["text"]
    for stop in (whole[4:7], ["zzzzz", whole[4:7]]):
        choice = toy.post(TEXT, prompt="The man", max_tokens=9, temperature=0, stop=stop).body["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(whole[4:7])], "stop")


@pytest.mark.slow
def test_reasoning_and_tool_calls_are_told_apart(toy_model, tokenizer) -> None:
    calls = write_calls([("weather", {"city": "Oslo"})])
    text = f"Let me look.</think>I ask.\n\n{calls}<｜end▁of▁sentence｜>"
    with live(Served({"parrot": parrot(toy_model(vocab_size=512), tokenizer, text)}, tokenizer)) as bird:
        asked = {"messages": QUESTION, "tools": [TOOL], "chat_template_kwargs": {"thinking": True}}
        (choice,) = bird.post(CHAT, **asked).body["choices"]
        message = choice["message"]
        assert (message["reasoning_content"], message["content"]) == ("Let me look.", "I ask.")
        assert choice["finish_reason"] == "tool_calls"
        (call,) = message["tool_calls"]
        assert call["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
        deltas = [chunk["choices"][0]["delta"] for chunk in bird.post(CHAT, **asked, stream=True).events()]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Let me look."
        assert "".join(delta.get("content", "") for delta in deltas) == "I ask."
        (told,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
        assert [(each["index"], each["function"]) for each in told] == [(0, call["function"])]
        results = [*QUESTION, message, {"role": "tool", "tool_call_id": call["id"], "content": "rain"}]
        assert bird.post(CHAT, messages=results, max_tokens=1, reasoning_effort="high").status == 200


def test_tools_stand_where_the_format_describes_them(toy: Live, tokenizer) -> None:
    """Seen from the number of tokens: on the system message, or on one that is made for them."""
    system = {"role": "system", "content": "Be brief."}
    for messages in (QUESTION, [system, *QUESTION]):
        first = messages[0] if messages[0]["role"] == "system" else {"role": "system", "content": ""}
        text = encode_messages([{**first, "tools": [TOOL]}, *QUESTION])
        usage = toy.post(CHAT, messages=messages, tools=[TOOL], max_tokens=1).body["usage"]
        assert usage["prompt_tokens"] == len(tokenizer.encode_prompt(text))
    plain = toy.post(CHAT, messages=QUESTION, max_tokens=1).body["usage"]
    assert toy.post(CHAT, messages=QUESTION, tools=[TOOL], tool_choice="none", max_tokens=1).body["usage"] == plain


REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({}, "messages", "messages: Field required"),
    ({"messages": QUESTION, "logit_bias": {}}, "logit_bias", "logit_bias: this field is not supported"),
    ({"messages": QUESTION, "temperature": "hot"}, "temperature", "temperature: Input should be a valid number"),
    ({"messages": QUESTION, "temperature": -1}, None, "temperature must be 0 or more, not -1"),
    ({"messages": QUESTION, "top_p": 0}, None, "top_p must be above 0"),
    ({"messages": QUESTION, "n": 0}, "n", "n: Input should be greater than or equal to 1"),
    ({"messages": QUESTION, "n": 99}, "n", "at most 32 answers"),
    ({"messages": QUESTION, "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"messages": QUESTION, "top_logprobs": 2}, None, "top_logprobs needs logprobs: true"),
    ({"messages": QUESTION, "stream_options": {}}, None, "stream_options belongs to stream: true"),
    ({"messages": QUESTION, "frequency_penalty": 0.5}, "frequency_penalty", "less than or equal to 0"),
    ({"messages": QUESTION, "tool_choice": "required"}, "tool_choice", "Input should be 'auto' or 'none'"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages", "messages[0] has the unknown role 'king'"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages", "the last message must be one that asks"),
    ({"messages": [*QUESTION, {"role": "assistant", "content": "4"}]}, "messages", "the last message must be one"),
    ({"messages": QUESTION, "stop": "a" * 1001}, None, "a stop text may have 1000 characters, not 1001"),
    ({"messages": QUESTION, "stop": ["x", "a" * 1001]}, None, "a stop text may have 1000 characters"),
    (
        {"messages": [{"role": "system", "content": "", "tools": 5}, *QUESTION], "tools": [TOOL]},
        "messages",
        "messages[0] (system) has tools that are no list",
    ),
    ({"messages": QUESTION, "tools": [{}]}, "messages", "which must have a function with a name"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "half of a surrogate pair"),
    ({"messages": QUESTION, "\ud800": 1}, None, "as a unicode string"),
    ({"messages": QUESTION, "max_tokens": 1999}, "messages", "more than the 2000 of this server"),
]


@pytest.mark.parametrize(("body", "param", "complaint"), REFUSED)
def test_what_is_asked_wrongly_is_refused_by_name(toy: Live, body: Any, param: str | None, complaint: str) -> None:
    answer = toy.post(CHAT, **body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert complaint in answer.error["message"]
    if param is not None:
        assert answer.error["param"] == param


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ([], "prompt is empty"),
        ([[]], "a prompt needs at least one token"),
        ([512], "a prompt's ids must lie in the vocabulary, 0 to 511"),
        ([-1], "in the vocabulary"),
        ({"a": 1}, "prompt: Input should be a valid string"),
        ("\ud800", "half of a surrogate pair"),
        ("word " * 3000, "more than the 2000 of this server"),
        ([7] * 1999, "more than the 2000 of this server"),
    ],
)
def test_prompts_that_are_none_are_refused(toy: Live, prompt: Any, complaint: str) -> None:
    answer = toy.post(TEXT, prompt=prompt)
    assert answer.status == 400
    assert complaint in answer.error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"nope", b"[" * 50_000, b'{"prompt": NaN}', b"null"])
def test_malformed_bodies_are_refused(toy: Live, body: bytes) -> None:
    for path in (CHAT, TEXT):
        answer = toy.ask("POST", path, body)
        assert answer.status == 400
        assert answer.error["message"]
    assert toy.health()["status"] == "ok"


def test_places_that_do_not_exist(toy: Live) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", CHAT, 405),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
    ):
        answer = toy.ask(method, path)
        assert answer.status == status
        assert answer.error["message"]
    answer = toy.post(CHAT, model="gpt", messages=QUESTION)
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert answer.error["message"] == "no model 'gpt' here; there is toy and other"


def test_a_wrong_method_is_told_the_right_ones(toy: Live) -> None:
    for method, path, allowed in (
        ("GET", CHAT, {"POST"}),
        ("HEAD", TEXT, {"POST"}),
        ("POST", "/", {"GET", "HEAD"}),
        ("DELETE", "/v1/models/toy", {"GET", "HEAD"}),
    ):
        answer = toy.ask(method, path)
        assert answer.status == 405
        assert set(answer.headers["allow"].split(", ")) == allowed


def test_what_can_be_read_has_a_head(toy: Live) -> None:
    for path in ("/", "/health", "/v1/models", "/v1/models/toy"):
        whole, head = toy.ask("GET", path), toy.ask("HEAD", path)
        assert (head.status, head.text) == (200, "")
        assert {**head.headers, "date": ""} == {**whole.headers, "date": ""}
    assert toy.ask("HEAD", "/v1/models/nobody").status == 404


def test_too_large_a_body_is_answered(toy: Live) -> None:
    answer = toy.ask("POST", CHAT, b"x" * 2**21)
    assert (answer.status, answer.error["type"]) == (413, "invalid_request_error")
    assert "1048576 bytes" in answer.error["message"]


def test_a_key_is_asked_for(model, tokenizer) -> None:
    with live(Served({"toy": model}, tokenizer, key="secret")) as found:
        for headers in ({}, {"Authorization": "Bearer Secret"}, {"Authorization": "secret"}):
            answer = found.ask("GET", "/v1/models", **headers)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert found.ask("GET", "/v1/models", Authorization="Bearer secret").status == 200
        assert found.ask("GET", "/").status == found.ask("GET", "/health").status == 200


def test_who_waits_too_long_or_finds_the_queue_full_is_told(model, tokenizer) -> None:
    limits = Limits(max_model_len=90_000, max_num_seqs=1, max_queued_requests=1, request_timeout=0.7)
    with live(Served({"toy": model}, tokenizer, limits)) as found:
        answers: list[Any] = []

        def ask(**more: Any) -> None:
            answers.append(found.post(TEXT, prompt="The man", max_tokens=80_000, temperature=0, **more))

        first = threading.Thread(target=ask, kwargs={"stream": True})
        first.start()
        found.until(lambda health: health["running"] == 1)
        second = threading.Thread(target=ask)
        second.start()
        found.until(lambda health: health["waiting"] == 1)
        refused = found.post(TEXT, prompt="x")
        assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
        assert refused.headers["retry-after"] == "1"
        for thread in (first, second):
            thread.join(30)
        streamed = next(each for each in answers if each.status == 200)
        late = next(each for each in answers if each.status != 200)
        assert (late.status, late.error["type"]) == (504, "timeout_error")
        last = json.loads(streamed.text.split("\n\n")[-2].removeprefix("data: "))
        assert "not complete after 0.7 s" in last["error"]["message"]
        found.until(lambda health: health["running"] == health["waiting"] == 0)


def test_a_request_that_never_ends_is_answered(model, tokenizer) -> None:
    with live(Served({"toy": model}, tokenizer, Limits(patience=0.3))) as found:
        host, port = found.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as link:
            link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            began = time.monotonic()
            assert link.recv(100).startswith(b"HTTP/1.1 408")
            assert time.monotonic() - began < 5
