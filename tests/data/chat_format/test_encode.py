import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from seektune import encode_messages
from seektune.data.chat_format import tokens
from seektune.data.chat_format.encode import render_chat_prompt, render_tool_results
from seektune.data.chat_format.encodings import ENCODINGS
from tests.places import CHAT_ENCODING

from .cases import ASSISTANT, BOS, EOS, TOOL, USER, made_answer, made_text, tool_call

official = pytest.mark.skipif(not CHAT_ENCODING.is_dir(), reason="the official cases are not here")


def said(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


ASK, ANSWER = said("user", "q"), said("assistant", "a", reasoning_content="r")
ASKED = f"{USER}q{ASSISTANT}"
SUM = tool_call("sum", {"xs": [1, 2], "unit": "m"}, "c1")
SUM_TEXT = (
    "\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="sum">\n'
    '<｜DSML｜parameter name="xs" string="false">[1, 2]</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="unit" string="true">m</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
    "</｜DSML｜tool_calls>"
)
TOOLS_TEXT = '{"name": "sum", "parameters": {"type": "object"}}'.join(ENCODINGS["preview"].tools_text)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], ""),
        ([ASK], f"{USER}q{ASSISTANT}<think>"),
        ([said("system", "s"), ASK], f"s{USER}q{ASSISTANT}<think>"),
        ([said("system", "s")], "s"),
        ([ASK, ANSWER], f"{ASKED}<think>r</think>a{EOS}"),
        ([ASK, said("assistant", "a")], f"{ASKED}<think></think>a{EOS}"),
        ([ASK, said("assistant", "a", wo_eos=True)], f"{ASKED}<think></think>a"),
        ([ASK, ANSWER, ASK, ANSWER], f"{ASKED}</think>a{EOS}{ASKED}<think>r</think>a{EOS}"),
        ([ANSWER], f"r</think>a{EOS}"),
        # developers ask like users; before the last question they are forgotten
        ([said("developer", "d"), ANSWER], f"{USER}d{ASSISTANT}<think>r</think>a{EOS}"),
        ([said("developer", "d"), ANSWER, ASK], f"a{EOS}{ASKED}<think>"),
        ([ASK, said("developer", "d")], f"{USER}q{USER}d{ASSISTANT}<think>"),
        # the answer's opening is written before a reminder, and none follows a reminder itself
        ([said("latest_reminder", "l"), ASK], f"<｜latest_reminder｜>l{ASKED}<think>"),
        ([ASK, said("latest_reminder", "l")], f"{ASKED}<think><｜latest_reminder｜>l"),
        # messages of one side are one turn
        ([ASK, ASK], f"{USER}q\n\nq{ASSISTANT}<think>"),
        ([ASK, said("system", "s")], f"{USER}qs"),
        # what tools return is a question too: without tools described, the thoughts before it go
        (
            [ASK, {**ANSWER, "tool_calls": [SUM]}, said("tool", "3", tool_call_id="c1")],
            f"{ASKED}</think>a{SUM_TEXT}{EOS}{USER}<tool_result>3</tool_result>{ASSISTANT}<think>",
        ),
        (
            [
                said("system", "s", tools=[TOOL]),
                ASK,
                {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [SUM]},
                said("tool", "3", tool_call_id="c1"),
                ASK,
            ],
            f"s\n\n{TOOLS_TEXT}{ASKED}<think>r</think>{SUM_TEXT}{EOS}"
            f"{USER}<tool_result>3</tool_result>\n\nq{ASSISTANT}<think>",
        ),
        ([said("developer", "d", tools=[TOOL])], f"{USER}d\n\n{TOOLS_TEXT}{ASSISTANT}<think>"),
        (
            [{"role": "system", "tools": [TOOL], "response_format": {"type": "é"}}],
            f"\n\n{TOOLS_TEXT}\n\n" + tokens.TEXTS["response_format"].format(schema='{"type": "é"}'),
        ),
        # quick instructions: their answers are never thought about
        ([said("user", "q", task="action"), ANSWER], f"{ASKED}<think><｜action｜>a{EOS}"),
        ([said("user", "q", task="query")], f"{USER}q<｜query｜>"),
        ([said("user", "q", task="read_url"), ANSWER], f"{USER}q<｜read_url｜>a{EOS}"),
        (
            [ASK, {**ANSWER, "task": "title"}, said("assistant", "t")],
            f"{ASKED}<think>r</think>a{EOS}<｜title｜>t{EOS}",
        ),
        ([said("user", "q", task="domain"), ASK], f"{USER}q{ASKED}<think>"),
        ([ASK, said("user", "q", task="domain")], f"{USER}q\n\nq{ASSISTANT}<think>"),
        # a list of parts, and what a tool returned that is no text
        (
            [said("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])],
            f"{USER}a\n\nb{ASSISTANT}<think>",
        ),
        (
            [said("tool", [{"type": "text", "text": "a"}, {"type": "image_url"}])],
            f"{USER}<tool_result>a\n\n[Unsupported image_url]</tool_result>{ASSISTANT}<think>",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_conversation_in_thinking_mode(messages: list[dict[str, Any]], text: str) -> None:
    assert encode_messages(messages, "thinking") == BOS + text


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([ASK, ANSWER, ASK], f"{ASKED}</think>a{EOS}{ASKED}</think>"),
        ([said("user", "q", task="action")], f"{ASKED}</think><｜action｜>"),
        ([said("developer", "d"), ANSWER, ASK], f"{USER}d{ASSISTANT}</think>a{EOS}{ASKED}</think>"),
    ],
)
def test_a_conversation_in_chat_mode(messages: list[dict[str, Any]], text: str) -> None:
    assert encode_messages(messages) == encode_messages(messages, "chat", reasoning_effort="max") == BOS + text


def test_thoughts_are_kept_where_that_is_asked_or_tools_are_described() -> None:
    kept = f"{ASKED}<think>r</think>a{EOS}{USER}d{ASSISTANT}<think>r</think>a{EOS}{ASKED}<think>"
    messages = [ASK, ANSWER, said("developer", "d"), ANSWER, ASK]
    assert encode_messages(messages, "thinking", drop_thinking=False) == BOS + kept
    assert encode_messages([said("system", "s", tools=[TOOL]), *messages], "thinking").endswith(kept)
    assert encode_messages([said("system", "s", tools=[]), *messages], "thinking").count("r</think>") == 0
    # on an answer tools are not written, and count nevertheless: so does the official encoder
    assert (
        encode_messages([*messages[:-1], said("assistant", "b", tools=[TOOL]), ASK], "thinking").count("r</think>") == 2
    )


def test_the_largest_effort_comes_before_everything_else() -> None:
    text = encode_messages([said("system", "s"), ASK], "thinking", reasoning_effort="max")
    assert text == BOS + ENCODINGS["preview"].efforts["max"] + f"s{ASKED}<think>"
    assert text.startswith(f"{BOS}Reasoning Effort: Absolute maximum with no shortcuts permitted.\n")
    assert encode_messages([ASK], "thinking", reasoning_effort="high") == encode_messages([ASK], "thinking")


def test_results_stand_in_the_order_of_the_calls_and_texts_keep_their_places() -> None:
    calls = [tool_call("f", {}, "c1"), tool_call("f", {}), tool_call("f", {}, "c3")]
    results = [said("tool", f"r{i}", tool_call_id=i) for i in ("c3", "lost", "c1")]
    text = encode_messages([said("assistant", "", tool_calls=calls), results[0], ASK, *results[1:]])
    told = text.partition(USER)[2].removesuffix(f"{ASSISTANT}</think>").split("\n\n")
    # a result of an unknown call counts as one of the first
    assert told == [f"<tool_result>r{i}</tool_result>" if i != "q" else "q" for i in ("lost", "q", "c1", "c3")]
    unnamed = encode_messages([said("assistant", "", tool_calls=[calls[1]] * 2), *results])
    assert [unnamed.index(f"r{i}") for i in ("c3", "lost", "c1")] == sorted(
        unnamed.index(f"r{i}") for i in ("c3", "lost", "c1")
    )


def test_a_call_may_have_its_id_beside_its_name() -> None:
    calls = [{"function": {**SUM["function"], "id": i}} for i in ("c1", "c2")]
    text = encode_messages(
        [said("assistant", "", tool_calls=calls), *(said("tool", i, tool_call_id=i) for i in ("c2", "c1"))]
    )
    assert "<tool_result>c1</tool_result>\n\n<tool_result>c2</tool_result>" in text


def test_arguments_may_be_an_object_already() -> None:
    call = {"id": "c1", "function": {"name": "sum", "arguments": {"xs": [1, 2], "unit": "m"}}}
    messages = [[ASK, said("assistant", "", tool_calls=[each])] for each in (SUM, call)]
    assert encode_messages(messages[0]) == encode_messages(messages[1])


@pytest.mark.parametrize(
    "arguments", [{"arguments": ""}, {"arguments": " "}, {"arguments": "null"}, {"arguments": None}, {}]
)
def test_a_call_without_arguments_has_an_empty_object(arguments: dict[str, Any]) -> None:
    """So clients send it back, and with it a content of null."""
    texts = []
    for function in ({"name": "ls", **arguments}, {"name": "ls", "arguments": "{}"}):
        answer = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": function}]}
        texts.append(encode_messages([ASK, answer, said("tool", "ok", tool_call_id="c")]))
    assert texts[0] == texts[1]


def test_an_answer_may_be_null() -> None:
    for empty in ({"role": "assistant", "content": None}, {"role": "assistant"}):
        assert encode_messages([ASK, empty]) == encode_messages([ASK, said("assistant", "")])


@pytest.mark.slow
def test_many_messages_of_one_side_take_linear_time() -> None:
    """A turn that is made anew for each of its messages would copy 5 billion blocks."""
    text = encode_messages([ASK] * 100_000)
    assert text == f"{BOS}{USER}" + "\n\n".join(["q"] * 100_000) + f"{ASSISTANT}</think>"


def test_tools_are_described_on_the_first_system_message() -> None:
    system = said("system", "s")
    for messages in ([ASK], [system, ASK], [said("system", "s", tools=[TOOL]), ASK]):
        first = messages[0] if messages[0]["role"] == "system" else said("system", "")
        own = first.get("tools", [])
        expected = [{**first, "tools": [*own, TOOL]}, ASK]
        assert render_chat_prompt(messages, [TOOL]).text == encode_messages(expected)
        assert render_chat_prompt(messages).text == encode_messages(messages)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "messages is empty"),
        ([said("system", "s")], "the last message must have the role user, developer or tool, not system"),
        ([ASK, said("system", "s")], "the last message must have the role user, developer or tool, not system"),
        ([ASK, ANSWER], "the last message must have the role user, developer or tool, not assistant; mark an answer"),
        ([ASK, said("latest_reminder", "l")], "the last message must have the role user, developer or tool, not late"),
        ("hello", "messages must be a list"),
        ([5], "messages[0] must be an object"),
    ],
)
def test_a_conversation_that_asks_for_no_answer_is_no_prompt(messages: Any, complaint: str) -> None:
    for tools in ((), [TOOL]):
        with pytest.raises(ValueError, match="message") as found:
            render_chat_prompt(messages, tools)
        assert str(found.value).startswith(complaint)


def test_what_asks_for_an_answer_is_a_prompt() -> None:
    for last in (ASK, said("developer", "d"), said("tool", "3"), said("assistant", "a", wo_eos=True)):
        assert render_chat_prompt([ASK, last]).text == encode_messages([ASK, last])
    assert render_chat_prompt([{**ASK, "task": "title"}]).text.endswith("<｜title｜>")
    with pytest.raises(ValueError, match="tools must be a list, not 'sum'"):
        render_chat_prompt([ASK], "sum")  # type: ignore[arg-type]


def test_messages_are_left_as_they_are() -> None:
    messages = [said("system", "s", tools=[TOOL]), ASK, {**ANSWER, "tool_calls": [SUM]}, said("tool", "3"), ASK]
    before = json.dumps(messages)
    encode_messages(messages, "thinking")
    assert json.dumps(messages) == before


def test_a_conversation_grows_at_its_end_while_tools_are_described() -> None:
    dice = random.Random(5)
    messages = [said("system", "s", tools=[TOOL])]
    text = encode_messages(messages, "thinking")
    for _ in range(30):
        messages += [said("user", made_text(dice)), made_answer(dice)]
        grown = encode_messages(messages, "thinking")
        assert grown.startswith(text)
        text = grown


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ("hello", "messages[1] must be an object with role and content, not 'hello'"),
        ({"content": "x"}, "messages[1] has no role; the roles are system, user, developer, latest_reminder, assi"),
        (said("tutor", "x"), "messages[1] has the unknown role 'tutor'; the roles are system, user"),
        ({"role": ["user"], "content": "x"}, "messages[1] has the unknown role ['user']"),
        (said("function", "4"), "messages[1] has the unknown role 'function', the older form of tool; the roles are"),
        ({"role": "user"}, "messages[1] (user) has no content"),
        ({"role": "tool", "tool_call_id": "c"}, "messages[1] (tool) has no content"),
        ({"role": "system"}, "messages[1] (system) has no content"),
        ({"role": "developer", "tools": [TOOL]}, "messages[1] (developer) has no content"),
        (said("developer", "", tools=[TOOL]), "messages[1] (developer) has no content"),
        (said("user", 7), "messages[1] (user) has content 7, which is no text"),
        (said("user", ["x"]), "messages[1] (user) has a part of content 'x', which must be an object"),
        (
            said("user", [{"type": "image_url", "image_url": {}}]),
            "messages[1] (user) has a part of content {'type': 'image_url', 'image_url': {}}, which is no text",
        ),
        (said("tool", [{"type": "text"}]), "messages[1] (tool) has a part of content {'type': 'text'}"),
        (said("user", "x", tools=[TOOL]), "messages[1] (user) brings tools or a response_format; only system and dev"),
        (said("user", "x", task="sing"), "messages[1] (user) has the unknown task 'sing'; the tasks are action, query"),
        (said("system", "x", tools={}), "messages[1] (system) has tools {}, which must be a list"),
        (said("system", "x", tools=["f"]), "messages[1] (system) has tools[0] 'f', which must have a function with"),
        (said("assistant", "x", reasoning_content=3), "messages[1] (assistant) has reasoning_content 3, which must be"),
        (said("assistant", "x", wo_eos="no"), "messages[1] (assistant) has wo_eos 'no', which must be true or false"),
        (
            said("assistant", "x", function_call={"name": "f", "arguments": "{}"}),
            "messages[1] (assistant) has function_call, which is the older form of tool_calls",
        ),
        (said("assistant", "x", tool_calls=[{"id": "c"}]), "messages[1] (assistant) has tool_calls[0] {'id': 'c'}"),
        (
            said("assistant", "x", tool_calls=[{"function": {"name": "f", "arguments": "{x: 1}"}}]),
            "messages[1] (assistant) calls f with arguments that are not JSON: '{x: 1}'",
        ),
        (
            said("assistant", "x", tool_calls=[{"function": {"name": "f", "arguments": "[" * 100_000}}]),
            "messages[1] (assistant) calls f with arguments that are not JSON: '[[[",
        ),
        (
            said("assistant", "x", tool_calls=[{"function": {"name": "f", "arguments": '{"x": ' + "9" * 5000 + "}"}}]),
            'messages[1] (assistant) calls f with arguments that are not JSON: \'{"x": 999',
        ),
        (
            said("assistant", "x", tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}]),
            "messages[1] (assistant) calls f with arguments [1], which must be a JSON object",
        ),
        (
            said("assistant", "x", tool_calls=[{"function": {"name": "f", "arguments": '{"x": NaN}'}}]),
            "messages[1] (assistant) calls f with arguments that are not JSON: '{\"x\": NaN}'",
        ),
        (
            said("assistant", "x", tool_calls=[{"function": {"name": "f", "arguments": {"x": math.nan}}}]),
            "messages[1] (assistant) has arguments of f {'x': nan}, which JSON cannot hold",
        ),
        (said("user", json.loads("[" * 500 + "]" * 500)), "messages[1] (user) has a part of content [[[Ellipsis"),
        (
            said("assistant", "x", tool_calls=[{"function": {"name": "f", "arguments": {"x": {1}}}}]),
            "messages[1] (assistant) has arguments of f {'x': {1}}, which JSON cannot hold",
        ),
        (
            said("system", "x", tools=[{"function": {"name": "f", "parameters": {1j}}}]),
            "messages[1] (system) has a tool {'name': 'f', 'parameters': {1j}}, which JSON cannot hold",
        ),
        (said("system", "x", response_format={"a": b""}), "messages[1] (system) has response_format {'a': b''}, which"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_mistakes_name_the_message(message: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match="messages") as found:
        encode_messages([ASK, message], "thinking")
    assert str(found.value).startswith(complaint)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 200


@pytest.mark.parametrize("options", [{"tools": [TOOL]}, {"response_format": {"type": "object"}}])
def test_mistakes_do_not_count_what_stands_beside_the_messages(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^messages\[0\] \(user\) has no content"):
        render_chat_prompt([said("user", None)], **options)
    with pytest.raises(ValueError, match=r"^messages\[1\] \(user\) has no content"):
        render_chat_prompt([said("system", "s"), said("user", None)], **options)


@pytest.mark.parametrize(
    ("tools", "complaint"),
    [
        ({"f": 1}, "tools must be a list, not {'f': 1}"),
        ([TOOL, {"type": "function"}], "tools[1] {'type': 'function'} must have a function with a name"),
        ([{"function": {"name": "f", "parameters": math.inf}}], "tools[0] .* holds what JSON cannot hold"),
    ],
)
def test_mistakes_of_tools_beside_the_messages_name_the_tool(tools: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("[", r"\[")):
        render_chat_prompt([ASK], tools)


@pytest.mark.parametrize("messages", ["hello", {"messages": []}, None])
def test_messages_must_be_a_list(messages: Any) -> None:
    with pytest.raises(ValueError, match="messages must be a list of objects with role and content, not "):
        encode_messages(messages)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown thinking_mode 'think'; it may be chat or thinking"):
        encode_messages([ASK], "think")
    with pytest.raises(
        ValueError, match="unknown reasoning_effort 'low'; in the encoding preview it may be None, high, max"
    ):
        encode_messages([ASK], "thinking", reasoning_effort="low")


@official
def test_the_official_cases_come_out_byte_for_byte() -> None:
    cases = json.loads((CHAT_ENCODING / "cases.json").read_text(encoding="utf-8"))
    assert len(cases) == 36
    for case in cases:
        assert encode_messages(case["messages"], **case["options"]) == case["text"], case["name"]


@official
@pytest.mark.parametrize(("number", "mode"), [(1, "thinking"), (2, "thinking"), (3, "thinking"), (4, "chat")])
def test_the_official_conversations_come_out_byte_for_byte(number: int, mode: str) -> None:
    messages = json.loads((CHAT_ENCODING / f"official_input_{number}.json").read_text(encoding="utf-8"))
    if isinstance(messages, dict):
        messages["messages"][0]["tools"] = messages["tools"]
        messages = messages["messages"]
    expected = (CHAT_ENCODING / f"official_output_{number}.txt").read_bytes().decode("utf-8")
    assert encode_messages(messages, mode) == expected


@official
def test_the_fixed_texts_are_the_official_ones() -> None:
    texts = json.loads((CHAT_ENCODING / "protocol_strings.json").read_text(encoding="utf-8"))
    own = json.loads(Path(tokens.__file__).with_name("tokens.json").read_text(encoding="utf-8"))
    assert {name: own[name] for name in texts} == texts


@pytest.mark.parametrize("encoding", list(ENCODINGS))
@pytest.mark.parametrize("mode", ["chat", "thinking"])
def test_a_response_with_calls_and_their_results_is_what_a_server_would_show(mode: str, encoding: Any) -> None:
    """Results come in another order than the calls; the reasoning stays, as tools are described."""
    calls = [tool_call("sum", {"xs": [1, 2]}, "c1"), tool_call("sum", {"xs": [3]}, "c2")]
    answer = said("assistant", "a", reasoning_content="r", tool_calls=calls)
    results = [said("tool", "3", tool_call_id="c2"), said("tool", f"3 {EOS}", tool_call_id="c1")]
    tools = [{"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}]
    before = render_chat_prompt([ASK], tools, mode, encoding=encoding)
    response = encode_messages([said("system", "", tools=tools), ASK, answer], mode, encoding=encoding)
    after = render_chat_prompt([ASK, answer, *results], tools, mode, encoding=encoding)
    assert response.startswith(before.text)
    following = render_tool_results([f"3 {EOS}", "3"], mode, encoding)
    assert response + following.text == after.text
    assert [run.text for run in following.runs() if run.control and run.text == EOS] == []
