"""Whatever a recipe or a flag holds: a run's plan, or an error of one line, and never another exception."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import typer

from seektune.cli import app
from seektune.cli.launch_flags import LaunchFlags
from seektune.cli.start import check_world, make_launch_config
from seektune.recipe.errors import known_keys
from seektune.recipe.load import dump_recipe, load_recipe, read_recipe
from seektune.recipe.recipe import Recipe
from tests.cli.test_cli import TINY

KEYS = sorted(known_keys(Recipe))
VALUES = [
    *("0", "1", "2", "3", "4", "7", "8", "16", "128", "-1", "1e-4", "1e3", "0.5", "-0", "1e400", "16000000000000"),
    *("9223372036854775807", "9223372036854775808", "1_000", "0x10", "010", ".nan", "inf", "nan", "1e-320"),
    *("true", "false", "yes", "no", "null", "~", "none", "None", "auto", "[]", "{}", "''", '"', "'1e-4'", "[", "]"),
    *("attn", "[attn]", "[attn, ffn.experts]", "[1, 2]", "[0.9, 0.95]", "[[1]]", "[null]", "attn,ffn", "[a: b]"),
    *("flash", "pro", "tiny", "bf16", "fp8", "adamw", "cosine", "1f1b", "zbv", "hellaswag", "validation"),
    *("~nobody0/x", "~", "$HOME/x", "${oc.env:HOME}", "/dev/null", "/", ".", "..", "a/b", "a\\b", "x" * 3000),
    *("a\tb", "é", "\u202e", "\x1b[31m", "a b", "-", "--", "=", "#", "a: b", "!!python/object:os.system x", "&a", "*a"),
]
FLAGS = {
    "--nodes": ("1", "2", "3", "0", "-1", "16000000000000", "x"),
    "--gpus-per-node": ("1", "8", "0", "99999999999"),
    "--time": ("24:00:00", "24h", "1", "00:10:00", "1-0", "", "-", "1:2:3:4", "infinite", "9" * 30),
    "--signal-seconds": ("1", "600", "65535", "65536", "0", "x"),
    "--env": ("A", "A=1", "HF_TOKEN", "HF_TOKEN=x", "=", "A=$B", "A=a\nb", "1=2", ""),
    "--name": ("mine", "a/b", "", "é", "$(x)"),
    "--output": ("logs", "~/logs", "$HOME", "a b", ""),
    "--venv": ("/v", "~nobody0/v", "$V", "v w", ""),
    "--setup": ("module load x", "", "a\nb", "# x"),
    "--sbatch": ("reservation=x", "--time=1", "", "=", "-", "a b"),
    "--mounts": ("/a:/b", "a", "$A:/b", ",", ""),
    "--container": ("image", "", "a b", "https://u:p@h/i"),
}


def one_line(act: Callable[[], object]) -> None:
    """Run it; a mistake must have a message of one line."""
    said = "a plan"
    try:
        act()
    except typer.TyperException as error:
        said = error.format_message()
    except ValueError as error:
        said = str(error)
    assert said
    assert "\n" not in said


@pytest.mark.parametrize("seed", range(8))
def test_overrides_give_a_plan_or_an_error(seed: int) -> None:
    dice = random.Random(seed)

    def plan() -> None:
        loaded = read_recipe(TINY, overrides)
        world = dice.choice((1, 2, 8))
        check_world(loaded.recipe, world)
        with suppress(OSError):  # no such folder
            make_launch_config(loaded, TINY, overrides, LaunchFlags(str(world)), world, {})

    for _ in range(40):
        overrides = [f"--{dice.choice(KEYS)}={dice.choice(VALUES)}" for _ in range(dice.choice((1, 1, 2, 4)))]
        one_line(plan)


@pytest.mark.parametrize("seed", range(8))
def test_files_give_a_recipe_that_can_be_written_or_an_error(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    file = tmp_path / "recipe.yaml"
    again = tmp_path / "again.yaml"

    def read() -> None:
        recipe = load_recipe(file)
        again.write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(again) == recipe

    for _ in range(40):
        lines = ["model: {preset: tiny}", "batch: {global_size: 8, length: 64}", "steps: 4"]
        for _ in range(dice.choice((1, 1, 2))):
            section, _, key = dice.choice(KEYS).rpartition(".")
            value = dice.choice(VALUES)
            lines.append(f"{section}:\n  {key}: {value}" if section else f"{key}: {value}")
        dice.shuffle(lines)
        file.write_text("\n".join(lines), encoding="utf-8")
        one_line(read)


@pytest.mark.parametrize("seed", range(8))
def test_flags_give_a_script_or_an_error(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    dice = random.Random(seed)
    command = typer.main.get_command(app)
    for _ in range(25):
        words = [f"{flag}={dice.choice(values)}" for flag, values in FLAGS.items() if dice.random() < 0.25]
        words += [] if any(word.startswith("--nodes=") for word in words) else ["--nodes=2"]

        def launch(words: list[str] = words) -> None:
            command(["launch", "slurm", TINY, "--force", *words], standalone_mode=False)()

        one_line(launch)
        capsys.readouterr()
