"""Parses a completion into a message: reasoning, content and tool calls."""

from typing import Any

from seektune.data.chat_format.choices import DEFAULT, EncodingName
from seektune.data.chat_format.encodings import find_encoding
from seektune.data.chat_format.render import check_mode
from seektune.data.chat_format.tokens import EOS, RESERVED, THINK_END
from seektune.data.chat_format.tool_calls import SHOWN, read_calls


def parse_message(text: str, thinking_mode: str, encoding: EncodingName = DEFAULT) -> dict[str, Any]:
    """The assistant's message of a completion: all that follows the prompt, EOS included (not needed after calls).

    Returns:
        `role`, `content`, `reasoning_content` and `tool_calls` (OpenAI's form, `arguments` as JSON text, no ids).

    Raises:
        ValueError: the completion was cut off or does not follow the format.
    """
    check_mode(thinking_mode)
    tags = find_encoding(encoding).tags
    if not text.endswith((EOS, tags.end)):  # after calls nothing but EOS can follow
        raise ValueError(f"the completion was cut off: {EOS} is not at its end ({text[-SHOWN:]!r})")
    answer = text.removesuffix(EOS)
    reasoning = ""
    if thinking_mode == "thinking":
        reasoning, end, answer = answer.partition(THINK_END)
        if not end:
            raise ValueError(f"the reasoning never ends: {THINK_END} is missing")
    content, begin, calls = answer.partition(f"\n\n{tags.begin}")
    tool_calls = read_calls(tags.begin + calls, tags) if begin else []
    for name, part in (("reasoning", reasoning), ("answer", content)):
        found = [token for token in RESERVED if token in part]
        if found:
            raise ValueError(f"the {name} holds {found[0]}, which only the format itself may write")
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": tool_calls}
