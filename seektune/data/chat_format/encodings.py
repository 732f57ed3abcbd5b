"""The encodings of the chat format, as data: what differs between the releases of DeepSeek-V4."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.tokens import DSML, OPENINGS, TASKS, TEXTS, THINK, THINK_END
from seektune.data.tokenizer import SYSTEM


@dataclass(frozen=True)
class CallTags:
    """The names of the tags around tool calls, as they follow the token `｜DSML｜`."""

    calls: str = "tool_calls"
    invoke: str = "invoke"
    parameter: str = "parameter"

    @property
    def begin(self) -> str:
        """The beginning of the opening tag of all calls."""
        return f"<{DSML}{self.calls}"

    @property
    def end(self) -> str:
        """The closing tag of all calls."""
        return f"</{DSML}{self.calls}>"


V4_TAGS = CallTags()
V41_TAGS = CallTags(" calls", " invoke", " parameter")


@dataclass(frozen=True)
class Encoding:
    """The chat format of one family of checkpoints."""

    name: EncodingName
    efforts: Mapping[str | None, str]
    """What each reasoning effort writes first in thinking mode; None is the default. Other efforts are refused."""
    tags: CallTags = V4_TAGS
    roles: tuple[str, ...] = ("system", *OPENINGS, "tool")
    tasks: tuple[str, ...] = tuple(TASKS)
    system: str = ""
    """What a system turn begins with."""
    later_tools: str | None = None
    """Heading of tools on a later system message; None repeats the whole explanation."""
    plain_tools: bool = False
    """Whether a tool is described by its name, description and parameters only."""
    header_first: bool = False
    """Whether `<｜Assistant｜>` begins each response, or ends the question that precedes it."""

    def effort(self, name: str | None) -> str:
        """What a reasoning effort writes.

        Raises:
            ValueError: the encoding does not have it.
        """
        if name not in self.efforts:
            known = ", ".join(str(effort) for effort in self.efforts)
            raise ValueError(f"unknown reasoning_effort {name!r}; in the encoding {self.name} it may be {known}")
        return self.efforts[name]

    def tier(self, effort: str | None) -> str | None:
        """The effort to use where a client of DeepSeek's API asks for one; the default if the encoding lacks it."""
        return effort if effort in self.efforts else None

    @property
    def tools_text(self) -> tuple[str, str]:
        """The explanation of tool calls, before and after the schemas (one JSON object per line)."""
        before, _, after = TEXTS["tools_block"].partition("{tool_schemas}")
        for v4_tag, tag in zip(astuple(V4_TAGS), astuple(self.tags), strict=True):
            before = before.replace(f"{{dsml_token}}{v4_tag}", f"{{dsml_token}}{tag}")
        tokens = {"dsml_token": DSML, "thinking_start_token": THINK, "thinking_end_token": THINK_END}
        return before.format(**tokens), after


def _numbered(number: int) -> str:
    return TEXTS["reasoning_effort_number"].format(number=number)


ENCODINGS: Mapping[EncodingName, Encoding] = {
    "preview": Encoding("preview", {None: "", "high": "", "max": TEXTS["reasoning_effort_max"]}),
    "0731": Encoding(
        "0731",
        {
            None: "",
            "low": "",
            "high": TEXTS["reasoning_effort_max"],
            "max": TEXTS["reasoning_effort_beyond_maximum"],
        },
    ),
    "v41": Encoding(
        "v41",
        {None: _numbered(75), "low": _numbered(50), "high": _numbered(75), "max": _numbered(100)},
        V41_TAGS,
        roles=("system", "user", "assistant", "tool", "latest_reminder"),
        tasks=(),
        system=SYSTEM,
        later_tools="### Updated Tool Schemas",
        plain_tools=True,
        header_first=True,
    ),
}
"""The encodings by name."""


def find_encoding(name: str) -> Encoding:
    """The encoding of a name.

    Raises:
        ValueError: there is none.
    """
    found = next((encoding for encoding in ENCODINGS.values() if encoding.name == name), None)
    if found is None:
        raise ValueError(f"unknown encoding {name!r}; it may be {', '.join(ENCODINGS)}")
    return found
