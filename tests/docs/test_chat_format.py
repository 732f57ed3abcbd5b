"""What docs/chat-format.md shows is true."""

import re

from seektune.data.chat_format.encodings import ENCODINGS, Encoding
from tests.data.chat_format.test_recipe_cases import DIFFERENT
from tests.data.chat_format.test_recipe_parsing import CUT_OFF, LINE_ENDS, LOST, OPTIONS, SPELLED
from tests.places import ROOT

PAGE = ROOT / "docs" / "chat-format.md"


def test_the_examples_of_the_page_hold() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})


def test_the_counts_of_the_page_are_those_of_the_tests() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    for encoding, different in DIFFERENT.items():
        assert f"{61 - len(different)} of 61" in page, encoding
    refused = CUT_OFF | SPELLED | LOST
    assert f"`parse_message` reads {52 - len(refused | OPTIONS | LINE_ENDS)} of 52" in page
    assert f"the server {52 - len(OPTIONS | LINE_ENDS | LOST)} of 52" in page


def test_the_efforts_of_the_page_are_those_of_the_encodings() -> None:
    """Each cell names the text that the effort writes, or says that the encoding refuses it."""
    page = PAGE.read_text(encoding="utf-8")
    names = re.search(r"^\| \| `(\w+)`.*?\| `(\w+)`.*?\| `(\w+)`", page, re.MULTILINE)
    assert names is not None
    assert list(names.groups()) == list(ENCODINGS)
    for label, effort in (("effort None", None), ("`low`", "low"), ("`high`", "high"), ("`max`", "max")):
        row = re.search(rf"^\| {label} \| (.+?) \| (.+?) \| (.+?) \|$", page, re.MULTILINE)
        assert row is not None, label
        for cell, encoding in zip(row.groups(), ENCODINGS.values(), strict=True):
            assert cell == described(encoding, effort), (label, encoding.name)


def described(encoding: Encoding, effort: str | None) -> str:
    if effort not in encoding.efforts:
        return "refused"
    text = encoding.efforts[effort]
    number = re.match(r"Reasoning Effort: (\d+)", text)
    if number:
        return f"number {number[1]}"
    return f'"{" ".join(text.split()[2:4])} …"' if text else "no text"
