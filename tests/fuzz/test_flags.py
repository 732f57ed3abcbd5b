"""Whatever the flags of `launch slurm` hold: a script, or an error of one line."""

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from seektune.cli import app
from tests.fuzz.test_fuzz import IN_CI
from tests.places import TINY

NODES = ("1", "2", "3", "0", "-1", "16000000000000", "x")
FLAGS = {
    "--gpus-per-node": ("1", "8", "0", "99999999999"),
    "--time": ("24:00:00", "24h", "1", "00:10:00", "1-0", "", "-", "1:2:3:4", "infinite", "9" * 30),
    "--signal-seconds": ("1", "600", "65535", "65536", "0", "x"),
    "--env": ("A", "A=1", "HF_TOKEN", "HF_TOKEN=x", "=", "A=$B", "A=a\nb", "1=2", ""),
    "--name": ("mine", "a/b", "", "é", "$(x)"),
    "--output": ("logs", "~/logs", "$HOME", "a b", ""),
    "--venv": ("/v", "~nobody0/v", "$V", "v w", ""),
    "--setup": ("module load x", "", "a\nb", "# x"),
    "--sbatch": ("reservation=x", "--time=1", "", "=", "-", "a b", "array=0-3", "array=%1", "array"),
    "--mounts": ("/a:/b", "a", "$A:/b", ",", ""),
    "--container": ("image", "", "a b", "https://u:p@h/i"),
}
CHOSEN = st.fixed_dictionaries(
    {"--nodes": st.sampled_from(NODES)},
    optional={flag: st.sampled_from(values) | st.text(max_size=8) for flag, values in FLAGS.items()},
)


@pytest.mark.slow
def test_flags_give_a_script_or_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    command = typer.main.get_command(app)
    outcomes = set()

    @IN_CI
    @given(CHOSEN)
    def launch(chosen: dict[str, str]) -> None:
        words = [f"{flag}={value}" for flag, value in chosen.items()]
        message = "a script"
        try:
            command(["launch", "slurm", str(TINY), "--force", *words], standalone_mode=False)()
        except typer.TyperException as error:
            message = error.format_message()
        except ValueError as error:
            message = str(error)
        outcomes.add(message == "a script")
        assert message.strip()
        assert "\n" not in message
        capsys.readouterr()

    launch()
    assert outcomes == {True, False}
