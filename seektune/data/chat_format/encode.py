"""Encodes messages as a prompt, byte for byte as the official encoder does."""

from collections.abc import Mapping, Sequence
from typing import Any

from seektune.data.chat_format.message import shown
from seektune.data.chat_format.tokens import ANSWERED, ASSISTANT, BOS, EFFORTS, EOS, OPENINGS, TASKS, THINK, THINK_END
from seektune.data.chat_format.turns import Turn, read_turns

MODES = ("chat", "thinking")


def encode_messages(
    messages: Sequence[Mapping[str, Any]],
    thinking_mode: str = "chat",
    drop_thinking: bool = True,
    reasoning_effort: str | None = None,
) -> str:
    """The prompt of a conversation, or its whole text if it ends with a response.

    Args:
        messages: objects with `role` (`system`, `user`, `assistant`, `tool`, `developer`, `latest_reminder`),
            `content` and, by role, `reasoning_content`, `tool_calls`, `tool_call_id`, `tools`, `response_format`,
            `task` and `wo_eos` (an answer that goes on); other fields are not looked at.
        thinking_mode: `thinking` writes reasoning and asks for it, `chat` does neither.
        drop_thinking: whether answers before the last question lose their reasoning, and developers' messages before
            it go; never where tools are described.
        reasoning_effort: None, `high` or `max`; only `max` in thinking mode changes the text.

    Raises:
        ValueError: naming the message and what is wrong with it.
    """
    return _encode(read_turns(messages), thinking_mode, drop_thinking, reasoning_effort)


def encode_chat_prompt(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    thinking_mode: str = "chat",
    reasoning_effort: str | None = None,
) -> str:
    """The prompt of a conversation that the model shall go on with; `tools` are described on its system message.

    The other arguments are those of `encode_messages`.

    Raises:
        ValueError: as `encode_messages`, or the conversation does not ask for an answer.
    """
    if isinstance(messages, list | tuple) and not messages:
        raise ValueError("messages is empty; it needs at least one that asks for an answer")
    turns = read_turns(with_tools(messages, tools))
    last = turns[-1]
    goes_on = last.role == "assistant" and not last.ended
    if last.role not in ANSWERED and last.task is None and not goes_on:
        raise ValueError(
            f"the last message must have the role user, developer or tool, not {last.role}; "
            "mark an answer `wo_eos` to go on with it"
        )
    return _encode(turns, thinking_mode, True, reasoning_effort)


def with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """The messages, with the tools on the first system message, which is added if missing.

    Raises:
        ValueError: the tools, or those of the system message, are not a list.
    """
    if not tools or not isinstance(messages, list | tuple):  # the reader of messages refuses anything else
        return messages
    if not isinstance(tools, list | tuple):
        raise ValueError(f"tools must be a list, not {shown(tools)}")
    first = messages[0] if messages else {}
    if not isinstance(first, Mapping) or first.get("role") != "system":
        return [{"role": "system", "content": "", "tools": tools}, *messages]
    own_tools = first.get("tools") or []
    if not isinstance(own_tools, list):
        raise ValueError("messages[0] (system): tools must be a list")
    return [{**first, "tools": [*own_tools, *tools]}, *messages[1:]]


def _encode(turns: list[Turn], thinking_mode: str, drop_thinking: bool, reasoning_effort: str | None) -> str:
    check_mode(thinking_mode)
    if reasoning_effort not in EFFORTS:
        known = ", ".join(str(effort) for effort in EFFORTS)
        raise ValueError(f"unknown reasoning_effort {reasoning_effort!r}; it may be {known}")
    thinking = thinking_mode == "thinking"
    dropping = thinking and drop_thinking and not any(turn.has_tools for turn in turns)
    if dropping:
        last = _last_question(turns)
        turns = [turn for i, turn in enumerate(turns) if i >= last or turn.role != "developer"]
    # the first turn whose responses keep their reasoning
    since = _last_question(turns) if dropping else 0
    effort = EFFORTS[reasoning_effort] if thinking and turns else ""
    return BOS + effort + "".join(_write(turns, i, thinking, since) for i in range(len(turns)))


def check_mode(thinking_mode: str) -> None:
    """Check a thinking mode.

    Raises:
        ValueError: it is none.
    """
    if thinking_mode not in MODES:
        raise ValueError(f"unknown thinking_mode {thinking_mode!r}; it may be {' or '.join(MODES)}")


def _last_question(turns: Sequence[Turn]) -> int:
    """Index of the last turn that a response follows; 0 if there is none."""
    return max((i for i, turn in enumerate(turns) if turn.role in ANSWERED), default=0)


def _write(turns: Sequence[Turn], i: int, thinking: bool, since: int) -> str:
    turn = turns[i]
    written = OPENINGS[turn.role] + turn.text
    if turn.role == "assistant":
        answers_task = i > 0 and turns[i - 1].task is not None
        thought = f"{turn.reasoning}{THINK_END}" if thinking and i >= since and not answers_task else ""
        written = thought + written + (EOS if turn.ended else "")
    return written + _invitation(turns, i, thinking, since)


def _invitation(turns: Sequence[Turn], i: int, thinking: bool, since: int) -> str:
    """The text that ends a turn before a response, or the last turn."""
    turn = turns[i]
    # A reminder after a question follows the opening of a response, as in the official encoder.
    if i + 1 < len(turns) and turns[i + 1].role not in ("assistant", "latest_reminder"):
        return ""
    if turn.task == "action":
        return ASSISTANT + (THINK if thinking else THINK_END) + TASKS[turn.task]
    if turn.task is not None:
        return TASKS[turn.task]
    if turn.role in ANSWERED:
        return ASSISTANT + (THINK if thinking and i >= since else THINK_END)
    return ""
