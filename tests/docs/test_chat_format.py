"""What docs/chat-format.md shows is true."""

import re

from tests.places import ROOT

PAGE = ROOT / "docs" / "chat-format.md"


def test_the_examples_of_the_page_hold() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})
