import json
import random

import pytest

from seektune import encode_messages, parse_message
from tests.places import CHAT_ENCODING

from .cases import EOS, made_answer, tool_call

CALLS = "\n\n<｜DSML｜tool_calls>\n{}\n</｜DSML｜tool_calls>" + EOS
INVOKE = '<｜DSML｜invoke name="f">\n{}\n</｜DSML｜invoke>'
PARAMETER = '<｜DSML｜parameter name="{}" string="{}">{}</｜DSML｜parameter>'


@pytest.mark.parametrize("mode", ["chat", "thinking"])
def test_what_is_written_is_read_back(mode: str) -> None:
    dice = random.Random(3)
    with_calls = 0
    for _ in range(300):
        answer = made_answer(dice)
        if mode == "chat":
            answer["reasoning_content"] = ""
        ask = {"role": "user", "content": "q"}
        prompt, whole = encode_messages([ask], mode), encode_messages([ask, answer], mode)
        assert whole.startswith(prompt)
        assert parse_message(whole.removeprefix(prompt), mode) == answer
        with_calls += bool(answer["tool_calls"])
    assert with_calls > 100


def test_an_answer_may_be_empty() -> None:
    empty = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    assert parse_message(EOS, "chat") == parse_message("</think>" + EOS, "thinking") == empty


def test_values_keep_the_digits_they_were_written_with() -> None:
    text = CALLS.format(INVOKE.format(PARAMETER.format("x", "false", "[1.50,1e3]")))
    (call,) = parse_message(text, "chat")["tool_calls"]
    assert call == {"type": "function", "function": {"name": "f", "arguments": '{"x": [1.50,1e3]}'}}


def test_text_that_looks_like_json_stays_text() -> None:
    answer = parse_message(CALLS.format(INVOKE.format(PARAMETER.format("x", "true", "[1]"))), "chat")
    assert answer["tool_calls"] == [tool_call("f", {"x": "[1]"})]


def test_after_calls_eos_may_lack_and_a_name_may_begin_a_line() -> None:
    text = CALLS.format(INVOKE.format(PARAMETER.format("x", "true", "<b>")))
    expected = parse_message(text, "chat")
    assert parse_message(text.removesuffix(EOS), "chat") == expected
    assert parse_message(text.replace(" name", "\nname", 1), "chat") == expected


def test_a_call_without_arguments_has_one_line_break_or_two() -> None:
    call = tool_call("f", {})
    for breaks in ("\n", "\n\n"):
        empty = f'<｜DSML｜invoke name="f">{breaks}</｜DSML｜invoke>'
        full = INVOKE.format(PARAMETER.format("x", "true", "a"))
        text = CALLS.format("\n".join([empty, full, empty]))
        assert parse_message(text, "chat")["tool_calls"] == [call, tool_call("f", {"x": "a"}), call]
    assert parse_message("a\n\n<｜DSML｜tool_calls>\n</｜DSML｜tool_calls>" + EOS, "chat")["tool_calls"] == []


def test_a_value_may_hold_markup_of_calls() -> None:
    value = "a\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>\n<｜DSML｜parameter>"
    text = CALLS.format(INVOKE.format(PARAMETER.format("x", "true", value)))
    assert parse_message(text, "chat")["tool_calls"] == [tool_call("f", {"x": value})]


@pytest.mark.parametrize("at", ['f">\n<', '"x" string="true">a</'])
def test_markup_that_was_not_closed_is_no_part_of_a_name_or_value(at: str) -> None:
    parameters = "\n".join(PARAMETER.format(name, "true", "a") for name in "xy")
    text = CALLS.format("\n".join([INVOKE.format(parameters)] * 2))
    assert len(parse_message(text, "chat")["tool_calls"]) == 2
    assert at in text
    with pytest.raises(ValueError, match="expected a "):
        parse_message(text.replace(at, at.replace(">", "", 1), 1), "chat")
    with pytest.raises(ValueError, match="expected a "):
        parse_message(text.replace("a</", "a/", 1), "chat")


@pytest.mark.parametrize(
    ("text", "mode", "complaint"),
    [
        (CALLS.replace(EOS, "x"), "chat", "the completion was cut off"),
        (
            CALLS.format(INVOKE.format(PARAMETER.format("x", "false", "9" * 5000))),
            "chat",
            "tool call f, x: '9999999999999999999999999999999999999999' is not JSON",
        ),
        ("Answer.", "chat", f"the completion was cut off: {EOS} is not at its end ('Answer.')"),
        ("Why." + EOS, "thinking", "the reasoning never ends: </think> is missing"),
        ("a</think>b" + EOS, "chat", "the answer holds </think>, which only the format itself may write"),
        ("<think>a</think>b" + EOS, "thinking", "the reasoning holds <think>, which"),
        (f"a{EOS}b{EOS}", "chat", f"the answer holds {EOS}, which"),
        ("a <｜DSML｜invoke" + EOS, "chat", "the answer holds ｜DSML｜, which"),
        ("\n\n<｜DSML｜tool_calls>\nx</think>" + EOS, "thinking", "the reasoning holds ｜DSML｜, which"),
        ("\n\n<｜DSML｜tool_calls>\n" + EOS, "chat", "tool calls must end with </｜DSML｜tool_calls>, these end with"),
        (CALLS.replace("{}", ""), "chat", "expected a tool call, found '\\n'"),
        (CALLS.format(INVOKE.format("")).replace(EOS, "x" + EOS), "chat", "tool calls must end with"),
        (CALLS.format("nothing"), "chat", "expected a tool call, found 'nothing\\n'"),
        (CALLS.format(INVOKE.format("") + "\n"), "chat", "expected a tool call, found '\\n'"),
        (CALLS.format(INVOKE.format("x=1")), "chat", "expected a name of a tool and its parameters, found ' name="),
        (
            CALLS.format(INVOKE.format(PARAMETER.format("x", "true", "1") + "y")),
            "chat",
            "expected a parameter of tool call f, found '>y\\n'",
        ),
        (
            CALLS.format(INVOKE.format(PARAMETER.format("x", "false", '{"y": [NaN]}'))),
            "chat",
            "tool call f, x: '{\"y\": [NaN]}' is not JSON",
        ),
        (
            CALLS.format(INVOKE.format(PARAMETER.format("x", "maybe", "1"))),
            "chat",
            'expected a parameter of tool call f, found \'<｜DSML｜parameter name="x" string="maybe',
        ),
        (
            CALLS.format(INVOKE.format("\n".join([PARAMETER.format("x", "true", "1")] * 2))),
            "chat",
            "tool call f gives the parameter x twice",
        ),
        (
            CALLS.format(INVOKE.format(PARAMETER.format("x", "false", "yes"))),
            "chat",
            "tool call f, x: 'yes' is not JSON, and string=\"false\" promises that",
        ),
        (EOS, "loud", "unknown thinking_mode 'loud'"),
    ],
    ids=lambda value: value[-40:],
)
def test_what_does_not_follow_the_format_is_refused(text: str, mode: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r".") as found:
        parse_message(text, mode)
    assert str(found.value).startswith(complaint)
    assert "\n" not in str(found.value)


@pytest.mark.skipif(not CHAT_ENCODING.is_dir(), reason="the official cases are not here")
def test_the_official_completions_are_understood() -> None:
    cases = json.loads((CHAT_ENCODING / "completions.json").read_text(encoding="utf-8"))
    assert len(cases) == 3
    for case in cases:
        assert parse_message(case["text"], case["thinking_mode"]) == case["message"], case["name"]
