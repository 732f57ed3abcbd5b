"""Made JSON values and messages, most of them wrong somewhere."""

import random
from typing import Any


def any_value(dice: random.Random, depth: int = 3) -> Any:
    """Any JSON value."""
    plain = [None, True, 0, 1, -1, 17, 2**70, 0.5, -1e308, 1e400, "", "x", "user", "\ud800", "<｜User｜>", [], {}]
    kind = dice.randrange(3 if depth else 1)
    if kind == 0:
        return dice.choice(plain)
    if kind == 1:
        return [any_value(dice, depth - 1) for _ in range(dice.randrange(4))]
    names = ("role", "content", "type", "text", "function", "name", "arguments", "tool_calls", "tools", "task", "x")
    return {dice.choice(names): any_value(dice, depth - 1) for _ in range(dice.randrange(4))}


def any_message(dice: random.Random) -> Any:
    """A message with some wrong fields."""
    roles = ("system", "user", "assistant", "tool", "developer", "latest_reminder")
    made = {"role": dice.choice(roles), "content": dice.choice(("x", None, any_value(dice)))}
    call = {
        "id": any_value(dice, 1),
        "function": {"name": dice.choice(("f", any_value(dice, 1))), "arguments": any_value(dice)},
    }
    extra = {
        "tool_calls": [call],
        "reasoning_content": any_value(dice, 1),
        "wo_eos": any_value(dice, 0),
        "tools": any_value(dice),
    }
    return made | {key: found for key, found in extra.items() if dice.random() < 0.2}
