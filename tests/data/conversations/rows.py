"""Rows of conversations that several tests write and read."""

from typing import Any

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


def call(name: str, arguments: Any, call_id: str = "") -> dict[str, Any]:
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": call_id, **made} if call_id else made


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str | None, reasoning: str | None = None, *calls: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    message |= {} if reasoning is None else {"reasoning_content": reasoning}
    return message | ({"tool_calls": list(calls)} if calls else {})


PLAIN = {"messages": [user("2+2?"), answer("4")]}
SYSTEM = {
    "messages": [{"role": "system", "content": "Be brief."}, user("你好 🐋"), answer("好"), user("?"), answer("!")]
}
REASONED = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        user("2+2?"),
        answer("4", "easy"),
        user("3+3?"),
        answer("6", "easier\n\nstill"),
    ]
}
CALLS = {
    "messages": [
        user("Zürich and Bern?"),
        answer(
            "Looking.",
            "two calls",
            call("weather", '{"city": "Zürich", "days": 2}', "a"),
            call("weather", {"city": "Bern"}, "b"),
        ),
        {"role": "tool", "content": "sun", "tool_call_id": "a"},
        {"role": "tool", "content": "snow", "tool_call_id": "b"},
        answer("Sun, then snow.", "done"),
        user("And now?"),
        answer(None, "again", call("weather", {})),
    ],
    "tools": [WEATHER],
}
ROWS = {"plain": PLAIN, "system": SYSTEM, "reasoned": REASONED, "calls": CALLS}
