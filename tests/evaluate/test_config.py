import pytest
from pydantic import ValidationError

from seektune.evaluate.config import EvaluateConfig


def test_exams_are_held_unless_said_otherwise():
    config = EvaluateConfig()
    assert (config.before, config.after, config.limit, config.every, config.batch_tokens) == (
        True,
        True,
        500,
        None,
        8192,
    )
    assert EvaluateConfig(limit=None).limit is None


@pytest.mark.parametrize("bad", [{"limit": 0}, {"every": 0}, {"batch_tokens": 0}, {"when": 1}])
def test_bad_values_are_refused(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        EvaluateConfig(**bad)
