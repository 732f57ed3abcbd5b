"""Text from files, terminals and clients: refused where it cannot be encoded."""

from pathlib import Path

from seektune.io.regular_file import open_regular


def check_unicode(text: str) -> None:
    """Refuse what cannot be encoded: JSON can spell half of a character, and a terminal can send bytes that are none.

    Raises:
        ValueError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair, which is not a character") from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file with its line ends as they are, without a byte order mark.

    Raises:
        ValueError: it is not UTF-8, or not a regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
