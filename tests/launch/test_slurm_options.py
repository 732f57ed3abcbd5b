"""Time limits and further options of sbatch."""

from dataclasses import replace

import pytest

from seektune.launch.job_spec import JobSpec
from seektune.launch.slurm import Slurm, write_slurm
from seektune.launch.slurm_options import check_time, checked_option, seconds_of

TASK = JobSpec("recipe.yaml", (), 2, 8, "mine")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("10:30", 630),
        ("01:02:03", 3723),
        ("100:00:00", 360_000),
        ("2-12", 216_000),
        ("1-00:30", 88_200),
        ("1-02:03:04", 93_784),
        ("UNLIMITED", None),
        ("infinite", None),
        ("0", None),
    ],
)
def test_the_forms_of_a_time(time: str, seconds: int | None) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("time", "said"),
    [
        ("24h", "write 24:00:00"),
        ("2d12h", "write 60:00:00"),
        ("90min", "write 01:30:00"),
        ("1h30m10s", "write 01:30:10"),
        ("tomorrow", "write HH:MM:SS, D-HH:MM:SS, or a number of minutes"),
        ("1:2:3:4", "write HH:MM:SS"),
        ("1-", "write HH:MM:SS"),
        ("-5", "write HH:MM:SS"),
        ("1.5", "write HH:MM:SS"),
    ],
)
def test_what_is_no_time_is_answered_with_what_was_meant(time: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"--time {time} is not a time of Slurm; {said}"):
        write_slurm(TASK, Slurm(time=time))


@pytest.mark.parametrize(
    ("time", "signal_seconds", "fits"),
    [
        ("00:10:00", 600, False),
        ("00:05:00", 600, False),
        ("00:11:59", 600, False),
        ("00:12:00", 600, True),
        ("24:00:00", 600, True),
        ("1-00", 65_535, True),
        ("15:00:00", 65_535, False),
        ("3", 60, True),
        ("0", 600, True),
    ],
)
def test_a_job_has_time_before_its_signal(time: str, signal_seconds: int, fits: bool) -> None:
    if fits:
        check_time(time, signal_seconds)
        return
    with pytest.raises(
        ValueError, match=f"--signal-seconds {signal_seconds} .*; raise --time or lower --signal-seconds"
    ):
        check_time(time, signal_seconds)


def test_further_options_are_lines_of_the_head() -> None:
    options = ("--reservation=mine", "mail-type=END,FAIL", "--array=0-3%1", "nice")
    head = write_slurm(TASK, Slurm(sbatch=options)).split("\n\n")[0].splitlines()
    assert head[-4:] == [
        "#SBATCH --reservation=mine",
        "#SBATCH --mail-type=END,FAIL",
        "#SBATCH --array=0-3%1",
        "#SBATCH --nice",
    ]


@pytest.mark.parametrize(
    ("array", "has_run_dir", "fits"),
    [
        ("0-3", False, True),
        ("0-3", True, False),
        ("1,5", True, False),
        ("0-3%2", True, False),
        ("0-3%1", True, True),
        ("7", True, True),
    ],
)
def test_tasks_of_an_array_do_not_share_a_run_folder(array: str, has_run_dir: bool, fits: bool) -> None:
    task = replace(TASK, run_dir="runs/mine" if has_run_dir else None)
    slurm = Slurm(sbatch=(f"--array={array}",))
    if not fits:
        with pytest.raises(ValueError, match="its tasks would train in the same run_dir at the same time"):
            write_slurm(task, slurm)
        return
    script = write_slurm(task, slurm)
    assert 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in script
    assert ("/mine-$SLURM_JOB_ID" in script) is not has_run_dir


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--time=1", "the script sets --time itself, or a flag of this command does"),
        ("signal=USR2@5", "the script sets --signal itself"),
        ("comment=two words", "#SBATCH line accepts"),
        ("time-min=10", "lets Slurm end the job before --time"),
        ("=x", "must be NAME=VALUE or NAME"),
        ("A=x", "must be NAME=VALUE or NAME"),
        ("tim=10", "sbatch may read --tim as --time; write the name out"),
        ("arr=0-3", "sbatch may read --arr as --array; write the name out"),
    ],
)
def test_options_that_cannot_be_added(option: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked_option(option)


def test_an_option_is_given_once() -> None:
    with pytest.raises(ValueError, match="--mail-user is given twice"):
        write_slurm(TASK, Slurm(sbatch=("mail-user=a@b.c", "--mail-user=d@e.f")))


def test_set_up_lines_come_before_the_command() -> None:
    lines = write_slurm(TASK, Slurm(setup=("module load cuda/12.4", "conda activate seek"))).splitlines()
    start = lines.index("set +u")
    assert lines[start : start + 4] == [
        "set +u",
        "module load cuda/12.4 || exit 1",
        "conda activate seek || exit 1",
        "set -u",
    ]
    assert start < lines.index("command=(")
    for line in ("export HF_TOKEN=abc", "module load x; WANDB_API_KEY='abc' true"):
        with pytest.raises(ValueError, match=r"--setup sets \w+, which looks like a secret"):
            write_slurm(TASK, Slurm(setup=(line,)))
    write_slurm(TASK, Slurm(setup=("export HF_TOKEN=$(cat ~/.token)", "export HF_HOME=/data; conda activate x")))
    with pytest.raises(ValueError, match="--setup must be one line"):
        write_slurm(TASK, Slurm(setup=("a\nb",)))
