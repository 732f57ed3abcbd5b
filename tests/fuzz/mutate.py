"""Strategies of hypothesis: valid documents with parts that are replaced, removed, added or damaged as bytes."""

from collections.abc import Iterable, Iterator
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.target import Target

MOST_CHANGES = 4
NUMBERS = (0, -1, 1, 2, 3, 7, 64, 2**31, 2**53 + 1, 2**62, 2**63, 10**30, 10**400, -(10**30), 0.5, -0.0, 1e-320, 1e308)
TEXTS = ("", "x", "~", "..", "a/b", "/dev/zero", "a\nb", "\x1b[31m", "\0", "\u2028", "\ud800", "<｜User｜>", "NaN", "١")
LARGE: tuple[Any, ...] = ("x" * 5000, "a " * 3000, [0] * 2000, ["layers"] * 3, {str(i): i for i in range(500)})
DEEP = (b"[" * 2000, b'{"a":' * 2000, b"[" * 100_000)
_FLAT = (None, True, False, float("nan"), float("inf"), *NUMBERS, *TEXTS)


def nested(depth: int) -> list[Any]:
    """A list in a list, `depth` times."""
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


scalars = st.one_of(st.sampled_from(_FLAT), st.integers(), st.floats(), st.text(max_size=20))
values = st.one_of(
    scalars,
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner)),
    st.sampled_from(LARGE),
    st.integers(10, 120).map(nested),
)
"""Any JSON value, with a liking for those that break programs."""


@st.composite
def changed(draw: st.DrawFn, value: Any, pool: tuple[Any, ...]) -> Any:
    """A document with one change somewhere; `pool` holds parts of valid documents."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(list(value)))
        other = st.sampled_from([part for part in (*TEXTS, *pool) if isinstance(part, str)]) | st.text(max_size=8)
        match draw(st.sampled_from(("inside",) * 6 + ("remove", "add", "rename"))):
            case "remove":
                return {name: part for name, part in value.items() if name != key}
            case "add":
                return {**value, draw(other): draw(values | st.sampled_from(pool))}
            case "rename":
                return {draw(other) if name == key else name: part for name, part in value.items()}
        return {**value, key: draw(changed(value[key], pool))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(value) - 1))
        match draw(st.sampled_from(("inside",) * 4 + ("remove", "repeat"))):
            case "remove":
                return value[:place] + value[place + 1 :]
            case "repeat":
                return value[:place] + value[place : place + 1] * draw(st.integers(2, 40)) + value[place:]
        return [*value[:place], draw(changed(value[place], pool)), *value[place + 1 :]]
    if isinstance(value, str) and draw(st.booleans()):
        return draw(spliced_text(value))
    return draw(values | st.sampled_from(pool))


@st.composite
def spliced_text(draw: st.DrawFn, text: str) -> str:
    """A text of which a part is replaced."""
    start = draw(st.integers(0, len(text)))
    stop = draw(st.integers(start, len(text)))
    return text[:start] + draw(st.sampled_from(TEXTS) | st.text(max_size=10)) + text[stop:]


@st.composite
def spliced(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of which a part is replaced."""
    start = draw(st.integers(0, len(content)))
    stop = draw(st.integers(start, min(start + 40, len(content))))
    return content[:start] + draw(st.binary(max_size=20) | st.sampled_from(DEEP)) + content[stop:]


def parts(value: Any) -> list[Any]:
    """A JSON value and all values in it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(part for each in inner for part in parts(each))]


@st.composite
def inputs(draw: st.DrawFn, target: Target) -> bytes:
    """The bytes of a changed document of a target."""
    document = draw(st.sampled_from(target.documents))
    pool = (*parts(list(target.documents)), *target.words)
    for _ in range(draw(st.integers(0, MOST_CHANGES))):
        document = draw(changed(document, pool))
    content = target.encode(document)
    return draw(spliced(content)) if draw(st.integers(0, 4)) == 0 else content


def grown(value: Any, times: int) -> Iterator[Any]:
    """The document once for each list and object in it, which holds its items `times` times there."""
    if isinstance(value, list) and value:
        yield value * times
        places: Iterable[Any] = range(len(value))
    elif isinstance(value, dict) and value:
        yield {**value, **{f"{key}{i}": part for i in range(times) for key, part in value.items()}}
        places = value
    else:
        return
    for place in places:
        for larger in grown(value[place], times):
            copy = value.copy()
            copy[place] = larger
            yield copy
