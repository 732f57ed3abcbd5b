"""Regular expressions of others, matched in time that grows only with the lengths of pattern and text (RE2)."""

from collections.abc import Sequence

from seektune.io.text import on_one_line


def matched(texts: Sequence[str], pattern: str) -> list[str]:
    """The texts in which a regular expression is found.

    Raises:
        ValueError: it is invalid, too complicated, or looks around, which RE2 cannot.
    """
    # RE2 does not backtrack; slow to import, and seldom needed
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        found = pc.match_substring_regex(pa.array(texts, pa.string()), pattern=pattern).to_pylist()
    except (pa.ArrowInvalid, UnicodeEncodeError) as error:
        raise ValueError(on_one_line(str(error))[:160]) from None
    return [text for text, is_found in zip(texts, found, strict=True) if is_found]
