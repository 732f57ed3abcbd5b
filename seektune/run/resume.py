"""Where a run starts: anew, from its own newest checkpoint, or from one that the user names."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seektune.checkpoint import MANIFEST, check_train_state, read_facts
from seektune.io.atomic_dir import clean_up_partial
from seektune.io.json_file import whole_number
from seektune.io.jsonl import read_records
from seektune.io.run_files import ADAPTER, CHECKPOINTS, METRICS, MODEL, RECIPE, REPORT
from seektune.recipe.load import load_recipe
from seektune.recipe.recipe import Recipe
from seektune.run.run_dir import refuse_taken, taken
from seektune.train.checkpoints import complete_checkpoints, step_of
from seektune.train.guard import MOST_STEPS

DECISIVE = ("model", "data", "batch", "optimizer", "schedule", "loss", "lora", "seed")
"""Parts of a recipe that a run cannot change and still be the same run."""


@dataclass(frozen=True)
class RunStart:
    """How a run begins."""

    checkpoint: Path | None = None
    """Its state to go on from."""
    finished: bool = False
    """Nothing is left to do."""


def product_of(recipe: Recipe) -> str:
    """What a run leaves, by its name in the run folder: weights or adapters."""
    return ADAPTER if recipe.lora.targets else MODEL


def find_start(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> RunStart:
    """Decide by `resume` and by what the run folder holds; a checkpoint is checked in full before it is used.

    Raises:
        ValueError: the folder is another run's, the checkpoint is damaged, or there is none where one is named.
    """
    named = recipe.resume not in ("auto", "no")
    if named and not _began_so(recipe, folder):
        return _named(Path(recipe.resume).expanduser(), recipe, folder, say)
    if taken(folder) is None:
        return RunStart()
    if recipe.resume == "no" or not (folder / RECIPE).is_file():
        refuse_taken(folder)
    if differing := _differences(recipe, load_recipe(folder / RECIPE).model_dump(mode="json")):
        raise ValueError(
            f"run_dir {folder} holds a run with another {differing[0]}; name another folder, "
            f"or start from its state with --resume={folder} and another --run_dir"
        )
    if (folder / REPORT).exists() and (folder / product_of(recipe)).exists() and _last_step(folder) == recipe.steps:
        return RunStart(finished=True)
    clean_up_partial(folder / CHECKPOINTS)
    checkpoints = complete_checkpoints(folder / CHECKPOINTS)
    if not checkpoints:
        say(f"{folder} holds a run without a checkpoint: it starts anew")
        return _from(_checkpoints_at(Path(recipe.resume).expanduser()), recipe, say) if named else RunStart()
    if named:
        say(f"{folder} began from {recipe.resume} before; it goes on where it was")
        return _from(checkpoints, recipe, say)
    start = _checked(checkpoints, say)
    if differing := _differences(recipe, _recipe_of(checkpoints[-1])):
        raise ValueError(
            f"{checkpoints[-1]} is of a run with another {differing[0]}; start from it all the same with "
            f"--resume={checkpoints[-1]}, or remove it"
        )
    return start


def refuse_other_rows(checkpoint: Path, digest: str) -> None:
    """Check that the training rows are those of the run that a checkpoint is of.

    Raises:
        ValueError: they are not.
    """
    if read_facts(checkpoint).get("rows", digest) != digest:
        raise ValueError(
            f"{checkpoint} was trained on other rows: data.path holds something else by now, or data or the tokenizer "
            "differ; its position in them means nothing here. Begin a new run with model.weights instead"
        )


def _began_so(recipe: Recipe, folder: Path) -> bool:
    """Whether the same words have begun the run in the folder, so that they are a call to go on."""
    if not (folder / RECIPE).is_file():
        return False
    before = load_recipe(folder / RECIPE)
    return before.resume == recipe.resume and not _differences(recipe, before.model_dump(mode="json"))


def _named(source: Path, recipe: Recipe, folder: Path, say: Callable[[str], None]) -> RunStart:
    checkpoints = _checkpoints_at(source)
    own = checkpoints[-1].resolve().parent == (folder / CHECKPOINTS).resolve()
    if not own:
        refuse_taken(folder)
    return _from(checkpoints, recipe, say)


def _checkpoints_at(source: Path) -> list[Path]:
    """The checkpoint at that place, or those of the run there, oldest first."""
    if not source.is_dir():
        raise ValueError(f"resume {source} is no folder; it can be auto, no, a checkpoint or a run folder")
    single = step_of(source) is not None or (source / MANIFEST).is_file()
    if checkpoints := [source] if single else complete_checkpoints(source / CHECKPOINTS):
        return checkpoints
    raise ValueError(f"resume {source} holds no checkpoint")


def _from(checkpoints: list[Path], recipe: Recipe, say: Callable[[str], None]) -> RunStart:
    """The newest, with a note of what the recipe has changed since."""
    start = _checked(checkpoints, say)
    for part in _differences(recipe, _recipe_of(checkpoints[-1])):
        say(f"note: {part} is not what it was when {checkpoints[-1]} was saved")
    return start


def _recipe_of(checkpoint: Path) -> dict[str, Any]:
    """The recipe that a checkpoint was made by."""
    recipe = read_facts(checkpoint).get("recipe")
    if not isinstance(recipe, dict):
        raise ValueError("it does not say of which recipe it is")
    return recipe


def _checked(checkpoints: list[Path], say: Callable[[str], None]) -> RunStart:
    """The newest checkpoint if it is whole; otherwise an older one is offered, not taken."""
    newest = checkpoints[-1]
    try:
        check_train_state(newest)
    except ValueError as error:
        raise ValueError(f"{error}; {_offer(checkpoints[:-1])}") from None
    say(f"resuming after step {_done_steps(newest)} from {newest}")
    return RunStart(newest)


def _done_steps(checkpoint: Path) -> int:
    """How many of its recipe's steps a checkpoint has behind it.

    Raises:
        ValueError: it says no number, or more than the recipe has.
    """
    try:
        steps = whole_number(_recipe_of(checkpoint), "steps", 1, MOST_STEPS)
        return whole_number(read_facts(checkpoint), "step", 0, steps)
    except ValueError as error:
        raise ValueError(f"{checkpoint} cannot be resumed: {error}") from None


def _offer(older: list[Path]) -> str:
    for checkpoint in reversed(older):
        try:
            check_train_state(checkpoint)
        except ValueError:
            continue
        return f"the checkpoint before is whole: --resume={checkpoint}"
    return "there is no older checkpoint that is whole: --resume=no and another --run_dir start anew"


def _last_step(folder: Path) -> int:
    lines = read_records(folder / METRICS) if (folder / METRICS).exists() else []
    return max((line["step"] for line in lines), default=0)


def _differences(recipe: Recipe, saved: dict[str, Any]) -> list[str]:
    now = recipe.model_dump(mode="json")
    parts = [part for part in DECISIVE if _comparable(now.get(part)) != _comparable(saved.get(part))]
    if saved.get("steps", 0) > recipe.steps:
        parts.append("number of steps (fewer than before)")
    return parts


def _comparable(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
