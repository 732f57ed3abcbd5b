"""The Jinja template of an encoding, for tools that have no encoder of their own."""

import json
from dataclasses import dataclass
from pathlib import Path

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.encodings import find_encoding
from seektune.data.chat_format.tokens import TEXTS
from seektune.data.tokenizer import Tokenizer

FILE = "chat_template.jinja"
"""Its name in a checkpoint folder, as transformers reads it."""


def chat_template(encoding: EncodingName) -> str:
    """The template, whose text is that of `encode_messages` with this encoding (docs/chat-format.md has the limits).

    Raises:
        ValueError: the encoding has none.
    """
    if encoding == "v41":
        raise ValueError("the encoding v41 has no chat template; use encode_messages")
    rules = find_encoding(encoding)
    before, after = rules.tools_text
    values = {
        "efforts": {name: text for name, text in rules.efforts.items() if name is not None},
        "tools_before": before,
        "tools_after": after,
        "response_format": TEXTS["response_format"].removesuffix("{schema}"),
    }
    header = "".join(
        f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n" for name, value in values.items()
    )
    body = Path(__file__).with_name(FILE).read_text(encoding="utf-8")
    return f"{{#- Chat template of DeepSeek-V4, encoding {encoding}. -#}}\n{header}{body}"


def save_chat_template(folder: Path, encoding: EncodingName) -> None:
    """Write the template into an existing checkpoint folder.

    Raises:
        ValueError: the encoding has none.
        OSError: it could not be written.
    """
    (folder / FILE).write_text(chat_template(encoding), encoding="utf-8", newline="")


@dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer and the encoding of its chats, which are exported together."""

    tokenizer: Tokenizer
    encoding: EncodingName

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files and the chat template, as transformers reads them.

        Raises:
            OSError: they could not be written.
        """
        self.tokenizer.save(folder)
        save_chat_template(folder, self.encoding)
