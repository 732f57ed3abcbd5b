"""Figures of runs that are drawn, but not turned into pixels, which takes a third of the time of a small run.

`tests/train` draws them to the end.
"""

import base64
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from matplotlib.figure import Figure

from seektune.train import comparison, report, report_preferences, report_rewards
from seektune.train.plot_style import LIGHT, Theme

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
"""An image of one pixel."""
DRAWING: tuple[ModuleType, ...] = (comparison, report, report_preferences, report_rewards)
"""Modules with figures."""


def draw_once(draw: Callable[[Theme], Figure]) -> tuple[bytes, bytes]:
    """As `in_both_themes`, in one of them and without pixels."""
    draw(LIGHT)
    return PNG, PNG


@pytest.fixture(autouse=True)
def blank_figures() -> Iterator[None]:
    """Figures of runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for module in DRAWING:
            patch.setattr(module, "in_both_themes", draw_once)
        yield
