from io import BytesIO

import pytest
from PIL import Image

from seektune.train.plots import DARK, LIGHT, BeforeAfter, Score, accuracy_figure, load_figure, loss_figure

SCORES = [
    BeforeAfter("acc", Score(0.25, 0.21, 0.29), Score(0.3, 0.26, 0.34)),
    BeforeAfter("norm", None, Score(0.4, 0.3, 0.5)),
]
STEPS = [{"step": 1, "loss": 4.0, "mtp_loss": 4.0}]


@pytest.mark.parametrize("paper", [LIGHT, DARK])
def test_figures_have_the_colour_of_their_paper(paper):
    loads = [{"step": 1, "loads": {str(layer): [1, 5, 0, 2] for layer in range(44)}}]
    pngs = [
        accuracy_figure(SCORES, paper),
        load_figure(loads, paper),
        loss_figure(STEPS, [{"step": 0, "loss": 4.0}], paper),
    ]
    for png in pngs:
        corner = Image.open(BytesIO(png)).convert("RGB").getpixel((0, 0))
        assert "#{:02x}{:02x}{:02x}".format(*corner) == paper.back


def test_an_interval_that_misses_its_value_by_a_rounding_is_drawn():
    assert accuracy_figure([BeforeAfter("acc", Score(0.0, 1e-17, 0.4), Score(1.0, 0.6, 1.0 - 1e-16))], LIGHT)


def test_a_score_reads_with_its_interval():
    assert str(Score(0.25, 0.213, 0.29)) == "25.0% (21.3% to 29.0%)"
