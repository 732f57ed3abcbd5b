from io import BytesIO

import pytest
from PIL import Image

from seektune.train.plot_style import DARK, LIGHT, in_both_themes, png
from seektune.train.plots import load_figure, loss_figure
from seektune.train.score_plot import BeforeAfter, Reference, Score, score_figure

GUESSING = Reference("guessing", 0.25)
SCORES = [
    BeforeAfter("acc", Score(0.25, 0.21, 0.29, "25.0%"), Score(0.3, 0.26, 0.34, "30.0%"), "accuracy", True, GUESSING),
    BeforeAfter("norm", None, Score(0.4, 0.3, 0.5, "40.0%"), "accuracy", True, GUESSING),
    BeforeAfter("perplexity", Score(4118, 4066, 4170, "4,118.0"), Score(303, 272, 339, "303.0"), "perplexity"),
]
STEPS = [{"step": 1, "loss": 4.0, "mtp_loss": 4.0}]


@pytest.mark.slow
@pytest.mark.parametrize("paper", [LIGHT, DARK])
def test_figures_have_the_colour_of_their_paper(paper):
    loads = [{"step": 1, "loads": {str(layer): [1, 5, 0, 2] for layer in range(44)}}]
    figures = [
        score_figure(SCORES, paper),
        load_figure(loads, paper),
        loss_figure(STEPS, [{"step": 0, "loss": 4.0}], paper),
    ]
    for figure in figures:
        corner = Image.open(BytesIO(png(figure))).convert("RGB").getpixel((0, 0))
        assert "#{:02x}{:02x}{:02x}".format(*corner) == paper.back


def test_an_interval_that_misses_its_value_by_a_rounding_is_drawn():
    first, second = Score(0.0, 1e-17, 0.4, "0.0%"), Score(1.0, 0.6, 1.0 - 1e-16, "100.0%")
    assert png(score_figure([BeforeAfter("acc", first, second, "accuracy", True)], LIGHT))


def test_scores_of_one_axis_share_it_and_others_add_to_the_height():
    heights = [score_figure(SCORES[:n], LIGHT).get_figheight() for n in (1, 2, 3)]
    assert heights[1] - heights[0] < heights[2] - heights[1]


def test_a_score_in_short_is_its_value():
    assert Score(0.25, 0.213, 0.29, "25.0% (21.3% to 29.0%)").short == "25.0%"


@pytest.mark.slow
def test_both_themes_have_the_layout_that_each_would_have():
    dark = in_both_themes(lambda paper: score_figure(SCORES, paper))[1]
    assert Image.open(BytesIO(dark)).tobytes() == Image.open(BytesIO(png(score_figure(SCORES, DARK)))).tobytes()
