"""Training texts written a second time, from the description of the formats alone, and taught spans read off a text.

It shares no code with the package: what both write alike is what the formats say.
"""

import json
import re
from typing import Any

START, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
HEADER = "<｜Assistant｜>"
ABSOLUTE = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, "
    "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n"
)
BEYOND = (
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the "
    "problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying "
    "cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles and are certain "
    "that no assumption remains unchecked and no error remains undiscovered.\n\n"
)
NUMBER = "Reasoning Effort: {} (range 1-100, the higher the value, the more thorough the reasoning)\n\n"
EFFORT_TEXT = {
    "preview": {None: "", "high": "", "max": ABSOLUTE},
    "0731": {None: "", "low": "", "high": ABSOLUTE, "max": BEYOND},
    "v41": {None: NUMBER.format(75), "low": NUMBER.format(50), "high": NUMBER.format(75), "max": NUMBER.format(100)},
}
TOOLS = """## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "<｜DSML｜CALLS>" block like the following:

<｜DSML｜CALLS>
<｜DSML｜INVOKE name="$TOOL_NAME">
<｜DSML｜PARAMETER name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜PARAMETER>
...
</｜DSML｜INVOKE>
<｜DSML｜INVOKE name="$TOOL_NAME2">
...
</｜DSML｜INVOKE>
</｜DSML｜CALLS>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

SCHEMAS

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""  # noqa: E501


def tags_of(encoding: str, text: str) -> str:
    """A text with the encoding's names of tags."""
    names = ("tool_calls", "invoke", "parameter") if encoding != "v41" else (" calls", " invoke", " parameter")
    for placeholder, name in zip(("CALLS", "INVOKE", "PARAMETER"), names, strict=True):
        text = text.replace(f"｜DSML｜{placeholder}", f"｜DSML｜{name}")
    return text


def calls_as_text(calls: list[dict[str, Any]], encoding: str) -> str:
    """The block of calls, with the empty line before it."""
    lines = ["<｜DSML｜CALLS>"]
    for call in calls:
        arguments = call["function"]["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        lines.append(f'<｜DSML｜INVOKE name="{call["function"]["name"]}">')
        for key, value in arguments.items():
            is_text = isinstance(value, str)
            written = value if is_text else json.dumps(value, ensure_ascii=False)
            opening = f'<｜DSML｜PARAMETER name="{key}" string="{"true" if is_text else "false"}">'
            lines.append(f"{opening}{written}</｜DSML｜PARAMETER>")
        if not arguments:
            lines.append("")
        lines.append("</｜DSML｜INVOKE>")
    lines.append("</｜DSML｜CALLS>")
    return tags_of(encoding, "\n\n" + "\n".join(lines))


def write(row: dict[str, Any], thinking: bool, effort: str | None, encoding: str) -> str:
    """The text of a row whose messages end with a response."""
    messages, tools = list(row["messages"]), row.get("tools") or []
    last = max(i for i, message in enumerate(messages) if message["role"] in ("user", "tool"))
    system = ""
    if messages[0]["role"] == "system":
        system = messages[0]["content"]
    if tools:
        schemas = [tool["function"] for tool in tools]
        system += "\n\n" + tags_of(encoding, TOOLS).replace("SCHEMAS", "\n".join(json.dumps(s) for s in schemas))
    lead = EFFORT_TEXT[encoding][effort] if thinking else ""
    if lead and not system and messages[0]["role"] != "system":
        lead = lead.removesuffix("\n\n") + "\n\n"
    text = START
    if lead or system or messages[0]["role"] == "system":
        text += ("<｜System｜>" if encoding == "v41" else "") + lead + system
    before = ""
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            text += ("\n\n" if before in ("user", "tool") else "<｜User｜>") + message["content"]
        elif role == "tool":
            opening = "\n\n" if before in ("user", "tool") else "<｜User｜>"
            text += f"{opening}<tool_result>{message['content']}</tool_result>"
        elif role == "assistant":
            thinks = thinking and (bool(tools) or i > last)
            text += HEADER + ("<think>" + message.get("reasoning_content", "") if thinks else "") + "</think>"
            text += message.get("content") or ""
            if message.get("tool_calls"):
                text += calls_as_text(message["tool_calls"], encoding)
            text += END
        before = role
    return text


def write_all(row: dict[str, Any], thinking: bool, effort: str | None, encoding: str) -> list[str]:
    """One text, or one per question where a server would drop the reasoning before it."""
    roles = [message["role"] for message in row["messages"]]
    if not thinking or row.get("tools"):
        return [write(row, thinking, effort, encoding)]
    ends = [i + 1 for i in range(len(roles)) if roles[i] == "assistant" and roles[i + 1 : i + 2] != ["assistant"]]
    return [write({**row, "messages": row["messages"][:end]}, thinking, effort, encoding) for end in ends]


def taught_spans(text: str) -> list[tuple[int, int]]:
    """Start and end, in characters, of what is taught of a text: what follows each header, EOS included.

    If any response has reasoning, responses without `<think>` are history.
    """
    responses = list(re.finditer(rf"{HEADER}(<think>|</think>)(.*?{END})", text, re.DOTALL))
    thinks = any(response[1] == "<think>" for response in responses)
    return [response.span(2) for response in responses if response[1] == ("<think>" if thinks else "</think>")]
