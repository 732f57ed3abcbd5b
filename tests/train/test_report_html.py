import re

from seektune.train.report_html import cards, folded, page, picture, section, table

from .reader import read

NASTY = "<script>alert('&')</script>\" $title"


def test_text_stays_text_everywhere():
    parts = [
        section(NASTY, table([(NASTY, NASTY)], (NASTY, NASTY)), folded(NASTY, NASTY)),
        cards([(NASTY, NASTY)]),
        picture(b"one", b"two", NASTY),
    ]
    reader = read(page(NASTY, NASTY, parts))
    assert "script" not in reader.tags
    assert "".join(reader.words).count(NASTY) == 13
    assert ("alt", NASTY) in reader.attributes


def test_a_picture_follows_the_colour_scheme():
    reader = read(picture(b"one", b"two", "a caption"))
    assert ("srcset", "data:image/png;base64,dHdv") in reader.attributes
    assert ("media", "(prefers-color-scheme: dark)") in reader.attributes
    assert ("src", "data:image/png;base64,b25l") in reader.attributes


def test_every_colour_of_the_style_is_defined():
    text = page("a", "b", [])
    used, defined = set(re.findall(r"var\((--\w+)\)", text)), set(re.findall(r"(--\w+):", text))
    assert used == defined
