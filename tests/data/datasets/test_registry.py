"""The registry of datasets: each is a section of the recipe, chosen by `data.kind`."""

from typing import get_args

import pytest

from seektune.data.datasets.registry import DATASETS, default_data


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_is_registered_by_its_own_name(name: str) -> None:
    section = DATASETS[name]
    assert get_args(section.model_fields["kind"].annotation) == (name,)
    assert section.title
    assert section.model_fields["kind"].description


def test_only_the_first_dataset_may_be_left_unnamed() -> None:
    first, *others = DATASETS.values()
    assert default_data() == first()
    assert (default_data().kind, default_data().on_bad_row) == ("hellaswag", "error")
    # otherwise an editor could not tell by the schema which of two sections is meant
    assert all(section.model_fields["kind"].is_required() for section in others)
