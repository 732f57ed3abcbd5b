"""Checks of sbatch's options: the form of a time limit, its room for work, and further lines of the script's head."""

import re
from collections.abc import Sequence

from seektune.launch.job_spec import header

DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+)", re.ASCII)
UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h(?:ours?|rs?)?)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?", re.ASCII | re.IGNORECASE)
"""A time as other programs take it: 24h, 2d12h, 90min."""
UNLIMITED = ("infinite", "unlimited", "0", "-1")
EARLY = 60
"""Seconds by which Slurm may send its signal too early."""
LEAST_WORK = 60
"""Fewest seconds to load and train before the signal; without any, a requeued job would never advance."""
OPTION = re.compile(r"--[a-z][a-z-]*(=.+)?")
MANY = re.compile(r"[-,]")
"""In the value of `array`, where it names more than one task."""
OWN = (
    *("account", "constraint", "exclusive", "export", "gpus", "gpus-per-node", "job-name", "mem", "nodes", "ntasks"),
    *("no-requeue", "ntasks-per-node", "open-mode", "output", "partition", "qos", "requeue", "signal", "time", "wrap"),
)
"""Options that the script itself or another flag sets."""
ARRAY = "array"
SHORTER = ("time-min", "deadline")
"""Options by which a job may end before its time limit."""


def seconds_of(time: str) -> int | None:
    """A time limit of sbatch in seconds; None for no limit.

    Raises:
        ValueError: it has none of sbatch's forms; the message has the one that was meant, where that can be told.
    """
    if time.lower() in UNLIMITED:
        return None
    if time.isdecimal() and time.isascii():
        return int(time) * 60
    if match := DAYS.fullmatch(time):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if match := CLOCK.fullmatch(time):
        hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return (hours * 60 + minutes) * 60 + seconds
    raise ValueError(f"--time {time} is not a time of Slurm; {_meant(time)}")


def _meant(time: str) -> str:
    match = UNITS.fullmatch(time)
    if not match or not any(match.groups()):
        return "write HH:MM:SS, D-HH:MM:SS, or a number of minutes"
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    minutes = minutes + seconds // 60
    hours = days * 24 + hours + minutes // 60
    return f"write {hours:02}:{minutes % 60:02}:{seconds % 60:02}"


def check_time(time: str, signal_seconds: int) -> None:
    """Check a time limit, and that work is possible before the signal that comes `signal_seconds` before its end.

    Raises:
        ValueError: it has no form of Slurm's, or the signal would come before training advances.
    """
    limit = seconds_of(header("--time", time))
    if limit is None or limit >= signal_seconds + EARLY + LEAST_WORK:
        return
    raise ValueError(
        f"--time {time} is {limit} s, of which --signal-seconds {signal_seconds} and the {EARLY} s that Slurm may be "
        "early leave no time to train: the job would be requeued for ever; raise --time or lower --signal-seconds"
    )


def check_array(options: Sequence[str], has_run_dir: bool) -> None:
    """Check that tasks of a job array that run at the same time do not share a run folder.

    Raises:
        ValueError: they do; the message names the option.
    """
    array = array_of(options)
    if has_run_dir and array is not None and MANY.search(array) and not array.endswith("%1"):
        raise ValueError(
            f"--sbatch array={array}: its tasks would train in the same run_dir at the same time; leave run_dir out, "
            f"so that each has its own, or write array={array.partition('%')[0]}%1 to run one after another"
        )


def array_of(options: Sequence[str]) -> str | None:
    """The value of sbatch's option `array`, if it is among them."""
    given = [
        option.lstrip("-").removeprefix(f"{ARRAY}=") for option in options if option.lstrip("-").startswith(f"{ARRAY}=")
    ]
    return given[-1] if given else None


def checked_options(options: Sequence[str]) -> list[str]:
    """Further options of sbatch as lines of the script's head have them.

    Raises:
        ValueError: one cannot be added (`checked_option`), or is given twice.
    """
    lines = [checked_option(option) for option in options]
    names = [line.partition("=")[0] for line in lines]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--sbatch {twice[0]} is given twice; sbatch would take the last one alone")
    return lines


def checked_option(option: str) -> str:
    """A further option of sbatch, with or without its dashes, as a line of the script's head has it.

    Raises:
        ValueError: it is not an option, needs quoting, abbreviates one that matters here, or the script sets it itself.
    """
    option = f"--{option.lstrip('-')}"
    header("--sbatch", option)
    if not OPTION.fullmatch(option):
        raise ValueError(f"--sbatch {option} must be NAME=VALUE or NAME, such as --sbatch reservation=mine")
    name = option.removeprefix("--").partition("=")[0]
    if name in OWN:
        raise ValueError(f"--sbatch {option}: the script sets --{name} itself, or a flag of this command does")
    for whole in (*OWN, *SHORTER, ARRAY):
        if whole.startswith(name) and whole != name:
            raise ValueError(f"--sbatch {option}: sbatch may read --{name} as --{whole}; write the name out")
    if name in SHORTER:
        raise ValueError(f"--sbatch {option} lets Slurm end the job before --time, too early to save; set --time alone")
    return option
