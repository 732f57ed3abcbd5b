"""`seektune data prepare`: what it makes is what training reads."""

from pathlib import Path

import pytest

from seektune.data.store import shard
from seektune.workflows.prepare_data import prepare_data
from seektune.workflows.preview import preview

from .conftest import Make


def test_it_says_what_it_made_and_training_reads_that(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (stores,) = prepare_data(recipe(), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "rows0 train: 40 examples of 40 rows",
        "rows0 validation: 6 examples of 6 rows",
    ]
    for line, store in zip(lines, stores.values(), strict=True):
        assert line.endswith(f", in {store.folder}")
        assert store.folder.parent == tmp_path / "prepared"
    monkeypatch.setattr(shard.ShardJob, "run", lambda self: pytest.fail("encoded again"))
    assert prepare_data(recipe(), tmp_path)[0]["train"].manifest == stores["train"].manifest
    preview(recipe(), 0, tmp_path)
    preview(recipe(batch__pack=True, batch__length=200), 0, tmp_path)
