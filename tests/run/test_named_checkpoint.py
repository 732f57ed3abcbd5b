"""Which key of the recipe names a checkpoint that is not there."""

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from seektune.checkpoint import hub
from seektune.model.config import DeepseekV4Config
from seektune.recipe.recipe import ModelConfig
from seektune.run.build import read_config
from seektune.run.frozen_models import check_frozen
from seektune.train.objective_section import FrozenModel

TINY = DeepseekV4Config.preset("tiny")


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that cannot be reached."""

    def refuse(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Got: ConnectError: no network\nPlease check your connection.")

    monkeypatch.setattr(hub, "snapshot_download", refuse)


@pytest.mark.usefixtures("unreachable")
def test_a_missing_teacher_is_named_by_its_key_also_if_it_may_be_on_the_hub() -> None:
    with pytest.raises(OSError, match=r"^objective\.teachers\.1\.checkpoint: runs/nothing is not") as caught:
        check_frozen(FrozenModel("objective.teachers.1.checkpoint", "runs/nothing"), TINY)
    assert str(caught.value).endswith("and the Hub cannot be reached: ConnectError: no network")
    with pytest.raises(ValueError, match=r"^objective\.teacher: runs/a/model is neither a folder nor a Hub id"):
        check_frozen(FrozenModel("objective.teacher", "runs/a/model"), TINY)


@pytest.mark.usefixtures("unreachable")
def test_missing_weights_are_named_by_their_key_also_if_they_may_be_on_the_hub() -> None:
    with pytest.raises(OSError, match=r"^model\.weights: runs/nothing is not a local folder"):
        read_config(ModelConfig(weights="runs/nothing"))
