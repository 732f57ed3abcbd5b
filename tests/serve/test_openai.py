"""OpenAI's client against a live server: streaming, tool calls, disconnecting."""

from typing import Any

import pytest

from seektune.serve.app import Served
from seektune.serve.limits import Limits
from tests.data.chat_format.cases import calls_text
from tests.patience import HUNG

from .live import Live, endless, live, parrot

QUESTION: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


def client(server: Live, **more: Any) -> Any:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=HUNG, **more)


@pytest.mark.slow
def test_client_lists_models_completes_and_streams(toy: Live) -> None:
    with client(toy) as asks:
        assert [model.id for model in asks.models.list()] == ["toy", "other"]
        asked: Any = {"model": "other", "messages": QUESTION, "temperature": 0, "max_completion_tokens": 20, "n": 2}
        whole = asks.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
        assert whole.usage.completion_tokens == 40
        assert len(whole.choices[0].logprobs.content) == 20
        texts, usage = ["", ""], None
        for chunk in asks.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == [choice.message.content for choice in whole.choices]
        assert usage.total_tokens == whole.usage.total_tokens
        text = asks.completions.create(model="toy", prompt="The man", max_tokens=5, logprobs=2, seed=1)
        assert len(text.choices[0].logprobs.tokens) == 5
        said = "".join(
            chunk.choices[0].text
            for chunk in asks.completions.create(model="toy", prompt="The man", max_tokens=5, seed=1, stream=True)
        )
        assert said == asks.completions.create(model="toy", prompt="The man", max_tokens=5, seed=1).choices[0].text


@pytest.mark.slow
def test_client_calls_a_tool_and_sends_its_result(toy_model: Any, tokenizer: Any) -> None:
    calls = calls_text([("weather", {"city": "Oslo"})])
    text = f"I look.</think>\n\n{calls}<｜end▁of▁sentence｜>"
    bird = parrot(toy_model(vocab_size=512), tokenizer, text)
    with live(Served({"bird": bird}, tokenizer, thinking=True)) as found, client(found) as asks:
        asked: Any = {"model": "bird", "messages": QUESTION, "tools": TOOLS}
        choice = asks.chat.completions.create(**asked).choices[0]
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Oslo"}')
        assert choice.message.reasoning_content == "I look."
        with asks.chat.completions.stream(**asked) as events:
            final = events.get_final_completion().choices[0]
        assert final.message.tool_calls[0].function.arguments == call.function.arguments
        result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        asked["messages"] = [*QUESTION, choice.message.model_dump(exclude_none=True), result]
        assert asks.chat.completions.create(**asked).choices[0].finish_reason == "tool_calls"


@pytest.mark.slow
def test_disconnect_cancels_the_request(toy_model: Any, tokenizer: Any) -> None:
    import openai

    asked: Any = {"model": "toy", "messages": QUESTION, "max_tokens": 900_000}
    served = Served({"toy": endless(toy_model(vocab_size=512), tokenizer)}, tokenizer, Limits(max_model_len=1_000_000))
    with live(served) as found, client(found) as asks:
        stream = asks.chat.completions.create(**asked, stream=True, n=3)
        next(stream)
        assert found.health()["running"] == 3
        stream.close()
        found.until(lambda health: health["running"] == 0)
        with pytest.raises(openai.APITimeoutError):
            asks.with_options(timeout=0.3).chat.completions.create(**asked)
        found.until(lambda health: health["running"] == 0)


@pytest.mark.slow
def test_client_raises_matching_error_types(toy: Live) -> None:
    import openai

    with client(toy) as asks:
        with pytest.raises(openai.NotFoundError, match="model 'gpt-4' not found"):
            asks.chat.completions.create(model="gpt-4", messages=QUESTION)
        with pytest.raises(openai.BadRequestError) as refused:
            asks.chat.completions.create(model="toy", messages=QUESTION, max_tokens=5000)
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="logit_bias: this field is not supported"):
            asks.chat.completions.create(model="toy", messages=QUESTION, logit_bias={"5": 1})
