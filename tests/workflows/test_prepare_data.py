"""`seektune data prepare`: what it makes is what training reads."""

from pathlib import Path

import pytest

from seektune.data.store import shard, view
from seektune.workflows.prepare_data import prepare_data
from seektune.workflows.preview import preview

from .conftest import Make


def test_it_says_what_it_made_and_training_reads_that(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (stores,) = prepare_data(recipe(), tmp_path)
    folder = Path(recipe().data.path).name
    *lines, training, held_out = capsys.readouterr().out.splitlines()
    assert training.startswith("HellaSwag: 40 train rows from")
    assert held_out.startswith("HellaSwag: 6 validation rows from")
    assert [line.split(",")[0] for line in lines] == [
        f"{folder} train: 40 examples of 40 rows",
        f"{folder} validation: 6 examples of 6 rows",
    ]
    for line, store in zip(lines, stores.values(), strict=True):
        assert line.endswith(f", in {store.folder}")
        assert store.folder.parent == tmp_path / "prepared"
    monkeypatch.setattr(shard.ShardJob, "run", lambda self: pytest.fail("encoded again"))
    monkeypatch.setattr(view, "_make", lambda *choice: pytest.fail("chosen again"))
    assert prepare_data(recipe(), tmp_path)[0]["train"].manifest == stores["train"].manifest
    preview(recipe(), 0, tmp_path)
    monkeypatch.undo()
    preview(recipe(batch__pack=True, batch__length=200), 0, tmp_path)


def test_streams_are_not_prepared(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.stream encodes rows while training reads them"):
        prepare_data(recipe(data__stream=True), tmp_path)
