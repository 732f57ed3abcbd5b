"""Responses of the server over HTTP, in OpenAI's form."""

import json
import socket
import threading
from typing import Any

import pytest

from seektune import encode_messages
from seektune.data.chat_format.encode import render_chat_prompt
from seektune.generate.detokenize import generate_all
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY, Sampling
from seektune.serve import generation_request
from seektune.serve.app import Served
from seektune.serve.limits import Limits
from tests.data.chat_format.cases import calls_text
from tests.patience import HUNG

from .live import Answer, Live, endless, live, parrot

QUESTION = [{"role": "user", "content": "2+2?"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def said(model, tokenizer, ids: list[int], sampling: Sampling = GREEDY, most: int = 6, seed: int = 0) -> str:
    request = Request(ids, most, sampling, frozenset({tokenizer.eos_id}), seed=seed)
    return generate_all(model, tokenizer, [request])[0][0].text


def test_models_and_health(toy: Live) -> None:
    assert toy.health() == {"status": "ok", "running": 0, "waiting": 0}
    listed = toy.ask("GET", "/v1/models").body
    assert [(each["id"], each["parent"], each["max_model_len"]) for each in listed["data"]] == [
        ("toy", None, 2000),
        ("other", "toy", 2000),
    ]
    assert toy.ask("GET", "/v1/models/other").body == listed["data"][1]


@pytest.mark.slow
def test_chat_completion_matches_generate(toy: Live, model, other, tokenizer) -> None:
    prompt = tokenizer.encode_prompt(encode_messages(QUESTION))
    for name, which in (("toy", model), ("other", other)):
        body = toy.post(CHAT, model=name, messages=QUESTION, max_tokens=6, temperature=0).body
        (choice,) = body["choices"]
        assert choice["message"] == {"role": "assistant", "content": said(which, tokenizer, prompt)}
        assert choice["finish_reason"] == "length"
        counts = body["usage"]
        del counts["prompt_tokens_details"]
        assert counts == {"prompt_tokens": len(prompt), "completion_tokens": 6, "total_tokens": len(prompt) + 6}
        assert (body["object"], body["model"]) == ("chat.completion", name)


@pytest.mark.slow
@pytest.mark.parametrize("thinking", [False, True])
def test_a_follow_up_turn_continues_from_the_cache(toy: Live, model, tokenizer, thinking: bool) -> None:
    """With reasoning, which the history leaves out, from the prompt before; else from the response, too."""
    asked = {"max_tokens": 30, "temperature": 0, "chat_template_kwargs": {"thinking": thinking}}
    question = [{"role": "user", "content": f"A {thinking} question?"}]
    first = toy.post(CHAT, messages=question, **asked).body
    before = first["usage"]["prompt_tokens"]
    answer = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    turns = [*question, answer, {"role": "user", "content": "And then?"}]
    body = toy.post(CHAT, messages=turns, **asked).body
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] >= before - 1
    prompt = render_chat_prompt(turns, (), "thinking" if thinking else "chat").ids(tokenizer)
    (alone,) = generate_all(model, tokenizer, [Request(prompt, 30, GREEDY, frozenset({tokenizer.eos_id}))])[0]
    message = body["choices"][0]["message"]
    assert message.get("reasoning_content" if thinking else "content") == alone.text


@pytest.mark.slow
def test_stream_chunks_add_up_to_the_whole_response(toy: Live) -> None:
    asked = {"messages": QUESTION, "max_tokens": 30, "seed": 3, "n": 3, "logprobs": True, "top_logprobs": 2}
    whole = toy.post(CHAT, **asked).body
    answer = toy.post(CHAT, **asked, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = answer.events()
    assert last["choices"] == []
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [last["usage"][key] for key in counts] == [whole["usage"][key] for key in counts]
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
def test_text_completion_matches_generate(toy: Live, model, tokenizer) -> None:
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
def test_text_offsets_are_character_positions(toy_model, tokenizer) -> None:
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
def test_sampling_and_seeds_match_generate(toy: Live, model, tokenizer, monkeypatch) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("The man")]
    options = {"temperature": 0.7, "top_p": 0.9, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.1}
    body = toy.post(TEXT, prompt="The man", max_tokens=8, seed=11, n=2, **options).body
    expected = [said(model, tokenizer, ids, Sampling(**options), 8, seed) for seed in (11, 12)]
    assert [choice["text"] for choice in body["choices"]] == expected
    seeds = [5, 6, 7]
    monkeypatch.setattr(generation_request, "randbits", lambda _: seeds[len(free)])
    free: list[str] = []
    for _ in seeds:
        free.append(toy.post(TEXT, prompt="The man", max_tokens=8).body["choices"][0]["text"])
    assert free == [said(model, tokenizer, ids, Sampling(), 8, seed) for seed in seeds]
    assert len(set(free)) == 3


@pytest.mark.slow
def test_completion_ends_before_a_stop_string(toy: Live) -> None:
    whole = toy.post(TEXT, prompt="The man", max_tokens=9, temperature=0).body["choices"][0]["text"]
    for stop in (whole[4:7], ["zzzzz", whole[4:7]]):
        choice = toy.post(TEXT, prompt="The man", max_tokens=9, temperature=0, stop=stop).body["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(whole[4:7])], "stop")


@pytest.mark.slow
def test_reasoning_content_and_tool_calls_are_separated(toy_model, tokenizer) -> None:
    calls = calls_text([("weather", {"city": "Oslo"})])
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


@pytest.mark.slow
def test_server_with_another_encoding_writes_and_reads_its_own(toy_model, tokenizer) -> None:
    question = [{"role": "user", "content": "2+2?"}]
    text = encode_messages([*question, {"role": "assistant", "tool_calls": [CALL]}], encoding="v41")
    completion = text.removeprefix(encode_messages(question, encoding="v41"))
    bird = parrot(toy_model(vocab_size=512), tokenizer, completion)
    with live(Served({"parrot": bird}, tokenizer, encoding="v41")) as found:
        (choice,) = found.post(CHAT, messages=question).body["choices"]
        assert choice["message"]["tool_calls"][0]["function"] == CALL["function"]
        assert (
            "the vocabulary of 512 ids has no <｜System｜>"
            in (found.post(CHAT, messages=[{"role": "system", "content": "s"}, *question]).error["message"])
        )


def test_tools_are_put_on_the_system_message(toy: Live, tokenizer) -> None:
    """Checked by the number of prompt tokens, with a system message and without."""
    system = {"role": "system", "content": "Be brief."}
    for messages in (QUESTION, [system, *QUESTION]):
        first = messages[0] if messages[0]["role"] == "system" else {"role": "system", "content": ""}
        text = encode_messages([{**first, "tools": [TOOL]}, *QUESTION])
        usage = toy.post(CHAT, messages=messages, tools=[TOOL], max_tokens=1).body["usage"]
        assert usage["prompt_tokens"] == len(tokenizer.encode_prompt(text))
    plain = toy.post(CHAT, messages=QUESTION, max_tokens=1).body["usage"]
    unused = toy.post(CHAT, messages=QUESTION, tools=[TOOL], tool_choice="none", max_tokens=1).body["usage"]
    assert unused["prompt_tokens"] == plain["prompt_tokens"]


REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({}, "messages", "messages: Field required"),
    ({"messages": QUESTION, "logit_bias": {"5": 1}}, "logit_bias", "logit_bias: this field is not supported"),
    ({"messages": QUESTION, "echo": True}, "echo", "echo: only false is supported"),
    ({"messages": None}, "messages", "messages: Field required"),
    ({"messages": []}, "messages", "messages is empty"),
    ({"messages": [5, 6]}, "messages.0", "messages.0: Input should be a valid dictionary"),
    ({"messages": QUESTION, "temperature": "hot"}, "temperature", "temperature: Input should be a valid number"),
    ({"messages": QUESTION, "temperature": -1}, None, "temperature must be 0 or more, not -1"),
    ({"messages": QUESTION, "top_p": 0}, None, "top_p must be above 0"),
    ({"messages": QUESTION, "n": 0}, "n", "n: Input should be greater than or equal to 1"),
    ({"messages": QUESTION, "n": 99}, "n", "at most 32 completions per request"),
    ({"messages": QUESTION, "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"messages": QUESTION, "top_logprobs": 2}, None, "top_logprobs needs logprobs: true"),
    ({"messages": QUESTION, "tools": [{"type": "web_search"}]}, "tools", "tools[0] {'type': 'web_search'} must have a"),
    ({"messages": QUESTION, "frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty: only 0 is supported"),
    ({"messages": QUESTION, "stop": ["x"] * 17}, "stop", "stop: at most 16 items are allowed"),
    ({"messages": QUESTION, "stop": 5}, "stop", "stop: must be a text or a list of texts"),
    (
        {"messages": QUESTION, "tool_choice": "required"},
        "tool_choice",
        "a call is required, but the request has no tools",
    ),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages", "messages[0] has the unknown role 'king'"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages", "the last message must have the role"),
    (
        {"messages": [*QUESTION, {"role": "assistant", "content": "4"}]},
        "messages",
        "the last message must have the role",
    ),
    ({"messages": QUESTION, "stop": "a" * 1001}, None, "a stop string may have at most 1000 characters, not 1001"),
    ({"messages": QUESTION, "stop": ["x", "a" * 1001]}, None, "a stop string may have at most 1000 characters"),
    (
        {"messages": [{"role": "system", "content": "", "tools": 5}, *QUESTION], "tools": [TOOL]},
        "messages",
        "messages[0] (system): tools must be a list",
    ),
    ({"messages": QUESTION, "tools": [{}]}, "tools", "tools[0] {} must have a function with a name"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "half of a surrogate pair"),
    ({"messages": QUESTION, "\ud800": 1}, None, "'\\ud800': this field is not supported"),
    ({"messages": QUESTION, "thinking": {"type": "enabled", "budget": 5}}, "thinking.budget", "is not supported"),
    (
        {"messages": [{"role": "user", "content": "x"}, {"role": "latest_reminder", "content": "x"}]},
        "messages",
        "not la",
    ),
    ({"messages": QUESTION, "max_tokens": 1999}, "messages", "exceed the server's limit of 2000 tokens"),
]


@pytest.mark.parametrize(("body", "param", "complaint"), REFUSED)
def test_invalid_request_is_refused_by_field(toy: Live, body: Any, param: str | None, complaint: str) -> None:
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
        ({"a": 1}, "prompt: must be a text, a list of texts, ids, or lists of ids"),
        ([0, "a", "b"], "prompt.1: Input should be a valid integer, unable to parse string as an integer"),
        ([[0], [{}], 5], "prompt.1.0: Input should be a valid integer"),
        (["a"] * 33, "at most 32 completions per request"),
        ("a" * 100_000, "100000 characters exceed the server's limit of 2000 tokens"),
        ("\ud800", "half of a surrogate pair"),
        ("word " * 3000, "exceed the server's limit of 2000 tokens"),
        ([7] * 1999, "exceed the server's limit of 2000 tokens"),
    ],
)
def test_invalid_prompt_is_refused(toy: Live, prompt: Any, complaint: str) -> None:
    answer = toy.post(TEXT, prompt=prompt)
    assert answer.status == 400
    assert complaint in answer.error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"nope", b"[" * 50_000, b'{"prompt": NaN}', b"null"])
def test_malformed_body_is_refused(toy: Live, body: bytes) -> None:
    for path in (CHAT, TEXT):
        answer = toy.ask("POST", path, body)
        assert answer.status == 400
        assert answer.error["message"]
    assert toy.health()["status"] == "ok"


def test_unknown_paths_and_models_are_refused(toy: Live) -> None:
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
    assert answer.error["message"] == "model 'gpt' not found; available: toy, other"


def test_a_slash_at_the_end_of_a_path_is_dropped(toy: Live) -> None:
    assert toy.ask("GET", "/v1/models/").body == toy.ask("GET", "/v1/models").body
    assert toy.ask("GET", "/v1/models/other/").body == toy.ask("GET", "/v1/models/other").body
    assert toy.ask("GET", "/health/").status == 200
    assert toy.ask("POST", f"{CHAT}/", {"messages": QUESTION, "max_tokens": 1}).status == 200


def test_a_body_must_be_sent_as_json(toy: Live) -> None:
    """A page elsewhere can send other types without the browser asking first."""
    for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
        answer = toy.ask("POST", TEXT, {"prompt": "x"}, **{"Content-Type": kind})
        assert (answer.status, answer.error["type"]) == (415, "invalid_request_error")
        assert "send the header Content-Type: application/json" in answer.error["message"]


@pytest.mark.slow
def test_tokens_that_look_alike_have_names_of_their_own(toy: Live) -> None:
    """In a toy's vocabulary half of all tokens are parts of characters, which all show the same sign."""
    asked = {"prompt": "x", "max_tokens": 30, "seed": 1, "logprobs": 20}
    logprobs = toy.post(TEXT, **asked).body["choices"][0]["logprobs"]
    assert [len(best) for best in logprobs["top_logprobs"]] == [20] * len(logprobs["tokens"])
    names = {name for best in logprobs["top_logprobs"] for name in best}
    assert any(name.startswith("bytes:\\x") for name in names)
    assert not any("\ufffd" in name for name in names)


def test_wrong_method_gets_an_allow_header(toy: Live) -> None:
    for method, path, allowed in (
        ("GET", CHAT, {"POST"}),
        ("HEAD", TEXT, {"POST"}),
        ("POST", "/", {"GET", "HEAD"}),
        ("DELETE", "/v1/models/toy", {"GET", "HEAD"}),
    ):
        answer = toy.ask(method, path)
        assert answer.status == 405
        assert set(answer.headers["allow"].split(", ")) == allowed


def test_head_matches_get_without_body(toy: Live) -> None:
    for path in ("/", "/health", "/v1/models", "/v1/models/toy"):
        whole, head = toy.ask("GET", path), toy.ask("HEAD", path)
        assert (head.status, head.text) == (200, "")
        assert {**head.headers, "date": ""} == {**whole.headers, "date": ""}
    assert toy.ask("HEAD", "/v1/models/nobody").status == 404


def test_too_large_body_gets_413(toy: Live) -> None:
    answer = toy.ask("POST", CHAT, b"x" * 2**21)
    assert (answer.status, answer.error["type"]) == (413, "invalid_request_error")
    assert "1048576 bytes" in answer.error["message"]


def test_api_key_is_required(model, tokenizer) -> None:
    with live(Served({"toy": model}, tokenizer, key="secret")) as found:
        for headers in ({}, {"Authorization": "Bearer Secret"}, {"Authorization": "secret"}):
            answer = found.ask("GET", "/v1/models", **headers)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert found.ask("GET", "/v1/models", Authorization="Bearer secret").status == 200
        assert found.ask("GET", "/").status == found.ask("GET", "/health").status == 200


def test_timeout_gets_504_and_full_queue_gets_429(toy_model, tokenizer) -> None:
    limits = Limits(max_model_len=1_000_000, max_num_seqs=1, max_queued_requests=1, request_timeout=60)
    body = {"prompt": "The man", "max_tokens": 900_000, "temperature": 0}
    now = [0.0]
    served = Served({"toy": endless(toy_model(vocab_size=512), tokenizer)}, tokenizer, limits)
    with live(served, lambda: now[0]) as found, found.response("POST", TEXT, {**body, "stream": True}) as streamed:
        answers: list[Answer] = []
        waiting = threading.Thread(target=lambda: answers.append(found.post(TEXT, **body)))
        waiting.start()
        found.until(lambda health: (health["running"], health["waiting"]) == (1, 1))
        refused = found.post(TEXT, prompt="x")
        assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
        assert refused.headers["retry-after"] == "1"
        now[0] += 61
        waiting.join(HUNG)
        assert (answers[0].status, answers[0].error["type"]) == (504, "timeout_error")
        last = json.loads(streamed.read().decode().split("\n\n")[-2].removeprefix("data: "))
        assert streamed.status == 200
        assert "not complete after 60 s" in last["error"]["message"]
        found.until(lambda health: health["running"] == health["waiting"] == 0)


def test_incomplete_request_gets_408(model, tokenizer) -> None:
    limits = Limits()
    with live(Served({"toy": model}, tokenizer, limits)) as found:
        host, port = found.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=HUNG) as link:
            link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            found.advance(limits.client_timeout + 1)
            assert link.recv(100).startswith(b"HTTP/1.1 408")
