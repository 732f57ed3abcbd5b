"""Text from files, terminals and clients: refused where it cannot be encoded, escaped where it cannot be printed."""

from pathlib import Path

from seektune.io.regular_file import open_named


def check_unicode(text: str) -> None:
    """Check that a text can be encoded: JSON can contain lone surrogates, and a terminal can send invalid bytes.

    Raises:
        ValueError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair, which is not a character") from None


def printable(text: str) -> str:
    """Text that cannot command the terminal; lines stay lines."""
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)


def on_one_line(text: str) -> str:
    """A name out of a file that can neither command the terminal nor begin a line of its own."""
    return printable(text).replace("\n", "\\n")


def one_line(error: BaseException) -> str:
    """The message of an error of a library on one line, its start if it is long; its class where it has none."""
    return printable(" ".join(str(error).split()))[:300] or type(error).__name__


def read_text(path: Path) -> str:
    """The text of a UTF-8 file with its line ends as they are, without a byte order mark.

    Raises:
        ValueError: it does not exist, is not UTF-8, or not a regular file.
        OSError: it cannot be read.
    """
    with open_named(path) as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
