"""The constants of DeepSeek-V4's chat format: control tokens, and the paragraphs of tokens.json."""

import json
import re
from pathlib import Path

from seektune.data.tokenizer import BOS, EOS, SYSTEM

USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
REMINDER = "<｜latest_reminder｜>"
THINK = "<think>"
THINK_END = "</think>"
DSML = "｜DSML｜"
TASKS = {task: f"<｜{task}｜>" for task in ("action", "query", "authority", "domain", "title", "read_url")}
"""The token of each quick instruction."""
OPENINGS = {"user": USER, "developer": USER, "latest_reminder": REMINDER, "assistant": ""}
"""What a turn of each role but system begins with (`<｜Assistant｜>` is written apart, with the think token)."""
ANSWERED = ("user", "developer")
"""Roles whose turns a response follows."""
RESERVED = (BOS, EOS, THINK, THINK_END, DSML)
"""Tokens that are never part of a response's content."""
CONTROL = re.compile("(" + "|".join((*RESERVED, USER, ASSISTANT, SYSTEM, REMINDER, *TASKS.values())) + ")")
"""Every control token that the format writes."""

TEXTS: dict[str, str] = json.loads(Path(__file__).with_name("tokens.json").read_text(encoding="utf-8"))
"""The paragraphs; names in braces are filled in."""


def as_json(value: object) -> str:
    """JSON as the format writes it: in one line, with a space after commas and colons, and letters as they are."""
    return json.dumps(value, ensure_ascii=False)
