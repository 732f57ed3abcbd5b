"""Memory of sampled answers as formulas: KV caches, which are there while nothing is trained."""

from seektune.planner.expressions import Formula

ROLLOUT = (
    Formula(
        "rollout_caches",
        "answers_here * (answer_fixed + (length + 1) * answer_token) * (1 + twice)",
        "of the answers that are sampled together; the upper bound has a copy of them, as answers join or leave",
    ),
    Formula(
        "rollout_work",
        "max(0, rollout_caches - made - optimizer_work)",
        "of these, what does not fit where forward, backward and the optimizer had theirs",
    ),
)
"""Formulas that follow what a step makes: answers are sampled before it."""
