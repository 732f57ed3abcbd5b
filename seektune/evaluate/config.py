"""What a recipe says about exams: when they are held and how large they are."""

from pydantic import PositiveInt

from seektune.section import Section


class EvaluateConfig(Section):
    """HellaSwag before and after training, and the validation loss on the way."""

    before: bool = True
    """Whether HellaSwag is scored before the first step."""
    after: bool = True
    """Whether HellaSwag is scored after the last step."""
    limit: PositiveInt | None = 500
    """Validation rows that are scored, spread evenly over the split; none = all 10,042."""
    every: PositiveInt | None = None
    """Steps between two measurements of the validation loss; none = never."""
    batch_tokens: PositiveInt = 8192
    """Most tokens, padding included, of one forward of an exam."""
