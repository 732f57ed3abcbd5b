"""Texts without the chat format: documents, and prompts with their completions."""

from seektune.data.chat_format.pieces import ChatText, Piece, from_format, from_message
from seektune.data.chat_format.tokens import BOS, CONTROL, EOS
from seektune.data.conversations.checks import spells
from seektune.data.conversations.teaching import ControlTokens
from seektune.io.text import check_unicode


def document_text(text: str, control_tokens: ControlTokens) -> ChatText:
    """BOS, a text and EOS; all but BOS is taught.

    Raises:
        ValueError: it cannot be encoded, or spells a control token and may not.
    """
    return completion_text("", text, control_tokens)


def completion_text(prompt: str, completion: str, control_tokens: ControlTokens) -> ChatText:
    """BOS, a prompt, its completion and EOS; completion and EOS are taught.

    Raises:
        ValueError: it cannot be encoded, or spells a control token and may not.
    """
    check_unicode(prompt + completion)
    spelled = CONTROL.search(prompt) or CONTROL.search(completion)
    if spelled and control_tokens == "error":
        raise ValueError(spells("the text", spelled[0]))
    taught = (Piece(completion, taught=True), Piece(EOS, control=True, taught=True))
    return ChatText((*from_format(BOS), *from_message(prompt), *taught))
