"""The Responses and Messages APIs against a live server, with the official clients and over plain HTTP."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from seektune.serve import constraint
from seektune.serve.app import Served
from seektune.serve.limits import Limits
from tests.data.chat_format.cases import calls_text
from tests.patience import HUNG

from .live import Live, live, parrot

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
QUESTION = "What is the weather in Oslo?"
SAID = f"I look.</think>Rain?\n\n{calls_text([('weather', {'city': 'Oslo'})])}<｜end▁of▁sentence｜>"
ASKED: dict[str, Any] = {"max_tokens": 20, "messages": [{"role": "user", "content": QUESTION}]}


@pytest.fixture(scope="module")
def bird(toy_model: Any, tokenizer: Any) -> Iterator[Live]:
    """A server that always reasons and calls a tool."""
    made = parrot(toy_model(vocab_size=512), tokenizer, SAID)
    with live(Served({"bird": made}, tokenizer, thinking=True)) as found:
        yield found


def anthropic_client(server: Live) -> Any:
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed")
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=HUNG)


def openai_client(server: Live) -> Any:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=HUNG)


@pytest.mark.slow
def test_anthropic_client_reads_thinking_text_and_a_tool_call_and_sends_them_back(bird: Live) -> None:
    tools = [{"name": "weather", "description": "", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}]
    asked: Any = {"model": "bird", "max_tokens": 1000, "tools": tools, "messages": ASKED["messages"]}
    with anthropic_client(bird) as client:
        whole = client.messages.create(**asked)
        assert [block.type for block in whole.content] == ["thinking", "text", "tool_use"]
        thinking, text, call = whole.content
        assert (thinking.thinking, text.text, call.name, call.input) == (
            "I look.",
            "Rain?",
            "weather",
            {"city": "Oslo"},
        )
        assert (whole.stop_reason, whole.stop_sequence, whole.type, whole.role) == (
            "tool_use",
            None,
            "message",
            "assistant",
        )
        with client.messages.stream(**asked) as events:
            streamed = events.get_final_message()
        assert [block.type for block in streamed.content] == ["thinking", "text", "tool_use"]
        assert streamed.content[0].thinking == "I look."
        assert streamed.content[0].signature
        assert streamed.content[2].input == {"city": "Oslo"}
        assert streamed.usage.output_tokens == whole.usage.output_tokens
        assert streamed.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
        answer = {"role": "assistant", "content": whole.model_dump()["content"]}
        asked["messages"] = [*ASKED["messages"], answer, {"role": "user", "content": [result]}]
        counted = client.messages.count_tokens(**{key: asked[key] for key in ("model", "messages", "tools")})
        assert counted.input_tokens > whole.usage.input_tokens


@pytest.mark.slow
def test_openai_client_reads_reasoning_text_and_a_call_and_sends_them_back(bird: Live) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}]
    asked: Any = {"model": "bird", "input": QUESTION, "instructions": "Be brief.", "tools": tools, "store": False}
    with openai_client(bird) as client:
        whole = client.responses.create(**asked, include=["reasoning.encrypted_content"])
        reasoning, _, call = whole.output
        assert [item.type for item in whole.output] == ["reasoning", "message", "function_call"]
        assert reasoning.content[0].text == "I look."
        assert whole.output_text == "Rain?"
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Oslo"})
        assert (whole.status, whole.instructions, whole.tools[0].name) == ("completed", "Be brief.", "weather")
        assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
        with client.responses.stream(**asked) as events:
            sent = list(events)
            kinds = [event.type for event in sent]
            streamed = events.get_final_response()
        # what the client adds up, from empty parts and arguments on
        snapshots = [event.snapshot for event in sent if event.type == "response.output_text.delta"]
        assert (snapshots[0], snapshots[-1]) == ("Rain?"[: len(snapshots[0])], "Rain?")
        (arguments,) = [event for event in sent if event.type == "response.function_call_arguments.delta"]
        assert (arguments.delta, arguments.snapshot) == (call.arguments, call.arguments)
        assert [item.type for item in streamed.output] == ["reasoning", "message", "function_call"]
        assert (streamed.output_text, streamed.output[2].arguments) == (whole.output_text, call.arguments)
        assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
        assert kinds[-1] == "response.completed"
        assert kinds.count("response.output_item.done") == 3
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        items = [{"role": "user", "content": QUESTION}, *(item.to_dict() for item in whole.output), output]
        assert client.responses.create(**{**asked, "input": items}).status == "completed"


@pytest.mark.slow
def test_items_and_parts_of_a_stream_start_without_text(bird: Live) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": SCHEMA}]
    sent = _events(bird.post(RESPONSES, input=QUESTION, tools=tools, stream=True).text)
    items = [each["item"] for name, each in sent if name == "response.output_item.added"]
    assert [item.get("content", item.get("arguments")) for item in items] == [[], [], ""]
    assert [each["part"]["text"] for name, each in sent if name == "response.content_part.added"] == ["", ""]
    added: dict[str, str] = {}
    for _, each in sent:
        if "delta" in each:
            added[each["item_id"]] = added.get(each["item_id"], "") + each["delta"]
    done = [each["item"] for name, each in sent if name == "response.output_item.done"]
    texts = [item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"] for item in done]
    assert texts == [added[item["id"]] for item in done] == ["I look.", "Rain?", '{"city": "Oslo"}']
    assert [item["status"] for item in done] == ["completed"] * 3


def test_the_item_that_max_output_tokens_cuts_off_is_incomplete(toy: Live) -> None:
    sent = _events(toy.post(RESPONSES, input=QUESTION, temperature=0, max_output_tokens=3, stream=True).text)
    (done,) = [each["item"] for name, each in sent if name == "response.output_item.done"]
    (whole,) = sent[-1][1]["response"]["output"]
    assert (sent[-1][0], done["status"], done) == ("response.incomplete", "incomplete", whole)


@pytest.mark.slow
def test_each_dialect_gets_the_tokens_of_chat_completions(toy: Live) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    expected = toy.post("/v1/chat/completions", messages=chat, max_tokens=8, temperature=0).body
    text = expected["choices"][0]["message"]["content"]
    prompt = expected["usage"]["prompt_tokens"]
    message = toy.post(MESSAGES, **{**ASKED, "max_tokens": 8}, system="Be brief.", temperature=0).body
    assert message["content"] == [{"type": "text", "text": text, "citations": None}]
    assert message["stop_reason"] == "max_tokens"
    usage = message["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (1, prompt - 1), "the same prompt"
    asked = {"input": QUESTION, "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 8}
    response = toy.post(RESPONSES, **asked).body
    assert response["output"][0]["content"][0]["text"] == text
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["usage"]["input_tokens"] == prompt
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": prompt - 1}
    events = _events(toy.post(RESPONSES, **asked, stream=True).text)
    assert [each["sequence_number"] for _, each in events] == list(range(len(events)))
    assert "".join(each["delta"] for name, each in events if name == "response.output_text.delta") == text
    assert events[-1][0] == "response.incomplete"


@pytest.mark.slow
def test_messages_end_at_a_stop_sequence_and_continue_a_prefill(toy: Live) -> None:
    asked = {**ASKED, "temperature": 0}
    text = toy.post(MESSAGES, **asked).body["content"][0]["text"]
    mark = text[5:8]
    stopped = toy.post(MESSAGES, **asked, stop_sequences=["nothing like it", mark]).body
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", mark)
    assert "".join(block["text"] for block in stopped["content"]) == text[: text.index(mark)]
    prefilled = [*ASKED["messages"], {"role": "assistant", "content": text[:4]}]
    assert toy.post(MESSAGES, **{**asked, "messages": prefilled}).status == 200


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (MESSAGES, {"max_tokens": None}, "max_tokens: Field required"),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
         "messages.0.content.0: type 'image' is not supported; supported are text, thinking, tool_use, tool_result"),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "hm"}]}]},
         "messages.0: a message of the user cannot have a block of type thinking"),
        (MESSAGES, {"messages": [{"role": "assistant", "content": [{"type": "text"}]}]},
         "messages.0.content.0.text: Field required"),
        (MESSAGES, {"messages": []}, "messages: at least 1 item is needed"),
        (MESSAGES, {"container": "x"}, "container: this field is not supported"),
        (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
         "tools.0.type: Input should be 'custom'"),
        (MESSAGES, {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
         "tool_choice: disable_parallel_tool_use: only false is supported, unless type is any or tool"),
        (MESSAGES, {"model": "gpt"}, "model 'gpt' not found"),
        (MESSAGES, {"max_tokens": 5000}, "exceed the server's limit of 2000 tokens"),
        (RESPONSES, {"input": None}, "input: Field required"),
        (RESPONSES, {"previous_response_id": "x"}, "previous_response_id: this field is not supported"),
        (RESPONSES, {"store": True}, "store: only false is supported"),
        (RESPONSES, {"truncation": "auto"}, 'truncation: only "disabled" is supported'),
        (RESPONSES, {"tools": [{"type": "web_search"}]},
         "tools.0: type 'web_search' is not supported; supported are function"),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]},
         "input.0: type 'item_reference' is not supported"),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input.0.content.0: type 'input_image' is not supported"),
        (RESPONSES, {"input": [{"role": "user", "content": 5}]}, "input.0.content: Input should be a valid list"),
        (RESPONSES, {"include": ["message.output_text.logprobs"]},
         "include.0: Input should be 'reasoning.encrypted_content'"),
        (RESPONSES, {"max_output_tokens": 5000},
         "tokens) and max_output_tokens (5000) exceed the server's limit of 2000 tokens"),
        (RESPONSES, {"input": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
         "input: the last item must be a message of the user or a developer, or a function_call_output"),
        (RESPONSES, {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"},
                               {"type": "function_call_output", "call_id": "c", "output": "4"}]},
         "input.0: calls f with arguments that are not JSON: '{'"),
        (RESPONSES, {"reasoning": {"effort": "hgih"}}, "reasoning.effort: Input should be 'none', 'minimal', 'low'"),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "schema": {"type": 5}}}}, "text.format"),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": {"type": 5}}}},
         "output_config.format"),
        (RESPONSES, {"parallel_tool_calls": False}, "parallel_tool_calls: only true is supported"),
        (RESPONSES, {"text": {"format": {"type": "json_schema"}}},
         "type: json_schema and the field schema belong together"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name_in_the_form_of_the_dialect(
    toy: Live, path: str, fields: dict[str, Any], message: str
) -> None:
    body = {**(ASKED if path == MESSAGES else {"input": QUESTION}), **fields}
    answer = toy.post(path, **body)
    assert answer.status in (400, 404)
    error = answer.body["error"]
    assert message in error["message"]
    if path == MESSAGES:
        assert answer.body["type"] == "error"
        assert error["type"] == ("not_found_error" if answer.status == 404 else "invalid_request_error")
    else:
        assert set(answer.error) == {"message", "type", "param", "code"}


def test_tokens_of_any_prompt_are_counted_and_no_grammar_is_compiled(
    toy: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*_: object) -> None:
        raise AssertionError("counting compiles nothing")

    monkeypatch.setattr(constraint, "compile_grammar", compiled)
    long = {"messages": [{"role": "user", "content": "The man " * 3000}]}
    limited = {**long, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    plain, described = (toy.post(f"{MESSAGES}/count_tokens", **asked).body["input_tokens"] for asked in (long, limited))
    assert described > plain > 2000, "beyond max_model_len"
    assert toy.post(MESSAGES, **long, max_tokens=1).status == 400


def test_what_asks_for_nothing_is_accepted(toy: Live) -> None:
    cached = [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}, "citations": None}]
    more = {"metadata": {"user_id": "me"}, "service_tier": "standard_only", "mcp_servers": [], "container": None}
    message = {"messages": [{"role": "user", "content": cached}], "system": cached, "max_tokens": 1}
    assert toy.post(MESSAGES, **message, **more, thinking={"type": "disabled"}).status == 200
    asked = {"input": QUESTION, "max_output_tokens": 1, "store": False, "background": False, "truncation": "disabled"}
    options = {"stream": True, "stream_options": {"include_obfuscation": False}, "metadata": {"a": "b"}}
    answer = toy.post(RESPONSES, **asked, **options, reasoning={"effort": "none", "summary": "auto"})
    assert _events(answer.text)[-1][1]["response"]["metadata"] == {"a": "b"}


@pytest.mark.slow
def test_errors_of_the_gates_have_the_form_of_the_dialect(model: Any, tokenizer: Any) -> None:
    import anthropic

    with live(Served({"toy": model}, tokenizer, Limits(max_body=2000), key="secret")) as server:
        with anthropic_client(server) as client, pytest.raises(anthropic.AuthenticationError, match="API key"):
            client.messages.create(model="toy", **ASKED)
        with anthropic_client(server).with_options(api_key="secret") as client:
            assert client.messages.create(model="toy", **{**ASKED, "max_tokens": 1}).usage.output_tokens == 1
            with pytest.raises(anthropic.RequestTooLargeError) as refused:
                client.messages.create(model="toy", max_tokens=1, messages=[{"role": "user", "content": "x" * 3000}])
            assert refused.value.body["error"]["type"] == "request_too_large"


@pytest.mark.slow
def test_an_error_in_a_stream_is_raised_by_the_clients(toy_model: Any, tokenizer: Any) -> None:
    import anthropic

    broken = toy_model(vocab_size=512)
    logits = broken.logits
    passes = iter([False, True] * 2)

    def failing(hidden: Any) -> Any:
        if next(passes):
            raise RuntimeError("out of memory")
        return logits(hidden)

    broken.__setattr__("logits", failing)
    with live(Served({"toy": broken}, tokenizer)) as server:
        client = anthropic_client(server)
        with (
            pytest.raises(anthropic.APIStatusError, match="decoding failed: out of memory"),
            client.messages.stream(model="toy", **ASKED) as stream,
        ):
            stream.get_final_message()
        with openai_client(server) as client:
            *_, last = client.responses.create(model="toy", input=QUESTION, stream=True)
            assert (last.type, last.message) == ("error", "decoding failed: out of memory")


def _events(text: str) -> list[tuple[str, Any]]:
    """Name and data of each event."""
    found = []
    for event in text.strip().split("\n\n"):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        assert found[-1][0] == found[-1][1]["type"]
    return found
