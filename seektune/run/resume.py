"""Decides where a run starts: at step 0, from its newest checkpoint, or from one that the user names."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seektune.checkpoint import MANIFEST, check_train_state, read_facts
from seektune.io.atomic_dir import clean_up_partial
from seektune.io.json_file import MOST_STEPS, whole_number
from seektune.io.jsonl import read_records
from seektune.io.run_files import ADAPTER, CHECKPOINTS, METRICS, MODEL, RECIPE, REPORT
from seektune.io.text import read_text
from seektune.paths import user_path
from seektune.recipe.load import dump_recipe, load_recipe
from seektune.recipe.recipe import Recipe
from seektune.recipe.saved import with_defaults
from seektune.run.run_dir import TAKEN, refuse_taken, taken
from seektune.train.checkpoints import complete_checkpoints, step_of
from seektune.train.optim.config import OPTIMIZERS, AdamWConfig

DECISIVE = ("model", "data", "batch", "optimizer", "schedule", "objective", "loss", "train", "lora", "seed")
"""Sections of a recipe that cannot change when a run resumes."""


@dataclass(frozen=True)
class RunStart:
    """Where a run starts."""

    checkpoint: Path | None = None
    """The checkpoint to resume from; None starts at step 0."""
    finished: bool = False
    """Whether the run is already finished."""


def product_of(recipe: Recipe) -> str:
    """Name of the run's export in the run folder: weights or adapters."""
    return ADAPTER if recipe.lora.targets else MODEL


def find_start(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> RunStart:
    """Decide by `resume` and the contents of the run folder; a checkpoint is fully checked before it is used.

    Raises:
        ValueError: the folder is another run's, the checkpoint is damaged, or there is none where one is named.
    """
    _refuse_own_source(recipe, folder)
    named = recipe.resume not in ("auto", "no")
    if named and not _began_so(recipe, folder):
        return _named(user_path(recipe.resume), recipe, folder, say)
    if taken(folder) is None:
        return RunStart()
    if recipe.resume == "no" or not (folder / RECIPE).is_file():
        refuse_taken(folder)
    if not _is_written_by_run(folder):
        raise ValueError(
            f"run_dir {folder} holds a {RECIPE} that no run has written and that this run would replace; name another "
            "folder, such as one below it"
        )
    before = load_recipe(folder / RECIPE).model_dump(mode="json")
    if differing := differences(recipe, before):
        usable = before["optimizer"]["name"] == recipe.optimizer.name
        offer = f", or start from its state with --resume={folder} and another --run_dir" if usable else ""
        raise ValueError(f"run_dir {folder} holds a run with another {differing[0]}; name another folder{offer}")
    if (folder / REPORT).exists() and (folder / product_of(recipe)).exists() and _last_step(folder) == recipe.steps:
        return RunStart(finished=True)
    clean_up_partial(folder / CHECKPOINTS)
    checkpoints = complete_checkpoints(folder / CHECKPOINTS)
    if not checkpoints:
        say(f"{folder} holds a run without a checkpoint: it starts anew")
        return _from(_checkpoints_at(user_path(recipe.resume)), recipe, say) if named else RunStart()
    if named:
        say(f"{folder} was started from {recipe.resume}; resuming from its own newest checkpoint")
        return _from(checkpoints, recipe, say)
    start = _checked(checkpoints, say)
    if differing := differences(recipe, _recipe_of(checkpoints[-1])):
        raise ValueError(
            f"{checkpoints[-1]} is of a run with another {differing[0]}; start from it all the same with "
            f"--resume={checkpoints[-1]}, or remove it"
        )
    return start


def refuse_other_rows(checkpoint: Path, digest: str) -> None:
    """Check that the training rows are those of the checkpoint's run.

    Raises:
        ValueError: they are not.
    """
    if read_facts(checkpoint).get("rows", digest) != digest:
        raise ValueError(
            f"{checkpoint} was trained on other rows: data.path holds something else by now, or data or the tokenizer "
            "differ; its position in them means nothing here. Begin a new run with model.weights instead"
        )


def refuse_other_stages(checkpoint: Path, digest: str | None) -> None:
    """Check that the DSpark stages that the result will carry are those of the checkpoint's run, by `carried_digest`.

    Raises:
        ValueError: they are not.
    """
    if read_facts(checkpoint).get("stages", digest) != digest:
        raise ValueError(
            f"{checkpoint} is of a run that began with other DSpark stages than those of model.weights, which its "
            "result would carry; give the release that it began with"
        )


def _refuse_own_source(recipe: Recipe, folder: Path) -> None:
    """Check that the result does not replace what the run starts from."""
    product = (folder / product_of(recipe)).resolve()
    for key, place in (("model.weights", recipe.model.weights), ("lora.adapter", recipe.lora.adapter)):
        if place is not None and Path(place).exists() and Path(place).resolve() == product:
            raise ValueError(f"{key} {place} is where this run writes its result; name another run_dir")


def _is_written_by_run(folder: Path) -> bool:
    """Whether the recipe in a folder is a run's own: it has begun more, or the file is just as a run writes it."""
    if any((folder / name).exists() for name in TAKEN if name != RECIPE):
        return True
    try:
        return read_text(folder / RECIPE) == dump_recipe(load_recipe(folder / RECIPE))
    except ValueError:
        return False


def _began_so(recipe: Recipe, folder: Path) -> bool:
    """Whether the run in the folder was started by the same command, which now resumes it."""
    if not (folder / RECIPE).is_file():
        return False
    before = load_recipe(folder / RECIPE)
    return before.resume == recipe.resume and not differences(recipe, before.model_dump(mode="json"))


def _named(source: Path, recipe: Recipe, folder: Path, say: Callable[[str], None]) -> RunStart:
    checkpoints = _checkpoints_at(source)
    own = checkpoints[-1].resolve().parent == (folder / CHECKPOINTS).resolve()
    if not own:
        refuse_taken(folder)
    return _from(checkpoints, recipe, say)


def _checkpoints_at(source: Path) -> list[Path]:
    """The checkpoint at a path, or the checkpoints of the run there, oldest first."""
    if not source.is_dir():
        raise ValueError(f"resume {source} is no folder; it can be auto, no, a checkpoint or a run folder")
    single = step_of(source) is not None or (source / MANIFEST).is_file()
    if checkpoints := [source] if single else complete_checkpoints(source / CHECKPOINTS):
        return checkpoints
    raise ValueError(f"resume {source} holds no checkpoint; name a run folder, or one of its {CHECKPOINTS}/step-NNNNNN")


def _from(checkpoints: list[Path], recipe: Recipe, say: Callable[[str], None]) -> RunStart:
    """The newest checkpoint, with a note of what changed in the recipe since."""
    start = _checked(checkpoints, say)
    newest = checkpoints[-1]
    if (done := _done_steps(newest)) > recipe.steps:
        raise ValueError(
            f"{newest} is after step {done}, but steps is {recipe.steps}; raise steps, or resume an older one"
        )
    saved = _optimizer_of(newest)
    if saved != recipe.optimizer.name:
        raise ValueError(
            f"{newest} holds the state of the optimizer {saved}, which {recipe.optimizer.name} cannot use; set "
            f"--optimizer.name={saved}, or begin a new run with model.weights"
        )
    for part in differences(recipe, _recipe_of(checkpoints[-1])):
        say(f"note: {part} is not what it was when {checkpoints[-1]} was saved")
    return start


def _recipe_of(checkpoint: Path) -> dict[str, Any]:
    """The recipe of a checkpoint."""
    recipe = read_facts(checkpoint).get("recipe")
    if not isinstance(recipe, dict):
        raise ValueError("it does not say of which recipe it is")
    return recipe


def _optimizer_of(checkpoint: Path) -> str:
    """The optimizer's name in the recipe of a checkpoint; the first version had only one."""
    section = _recipe_of(checkpoint).get("optimizer", {})
    name = section.get("name", AdamWConfig().name) if isinstance(section, dict) else None
    if name not in list(OPTIMIZERS):
        raise ValueError(f"{checkpoint}: its recipe names no optimizer out of {', '.join(OPTIMIZERS)}")
    return name


def _checked(checkpoints: list[Path], say: Callable[[str], None]) -> RunStart:
    """The newest checkpoint if it is undamaged; otherwise the error names an older one."""
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


def differences(recipe: Recipe, saved: dict[str, Any]) -> list[str]:
    """The keys of a run's recipe, as a checkpoint or a run folder has it, that have other values now."""
    now = recipe.model_dump(mode="json")
    before = with_defaults(saved)
    parts = [key for part in DECISIVE for key in _differing(part, now.get(part), before.get(part))]
    if saved.get("steps", 0) > recipe.steps:
        parts.append("number of steps (fewer than before)")
    return parts


def _differing(key: str, now: Any, before: Any) -> Iterator[str]:
    """The key, or those below it, if both are sections of one kind."""
    if isinstance(now, dict) and isinstance(before, dict) and set(now) == set(before):
        for name in now:
            yield from _differing(f"{key}.{name}", now[name], before[name])
    elif _comparable(now) != _comparable(before):
        yield key


def _comparable(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
