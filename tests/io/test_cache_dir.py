from pathlib import Path

import pytest

from seektune.io.cache_dir import cache_dir


def test_the_folder_is_where_the_user_wants_caches(tmp_path):
    assert cache_dir({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "seektune"


@pytest.mark.parametrize("environment", [{}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}])
def test_the_folder_is_at_home_otherwise(environment: dict[str, str]):
    assert cache_dir(environment) == Path.home() / ".cache" / "seektune"
