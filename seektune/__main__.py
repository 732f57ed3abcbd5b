"""Where the console scripts begin, and `python -m seektune`: Ctrl-C takes one line also while the rest is imported."""

import sys
from typing import NoReturn

from seektune.exit_codes import FAILURE


def main() -> NoReturn:
    """Console script `seektune`."""
    _enter("main")


def automodel() -> NoReturn:
    """Console script `automodel`."""
    _enter("automodel")


def _enter(door: str) -> NoReturn:
    try:
        from seektune import cli

        doors = {"main": cli.main, "automodel": cli.automodel}
        doors[door]()
    except KeyboardInterrupt:
        sys.stderr.write("seektune: interrupted by Ctrl-C\n")
        sys.exit(FAILURE)


if __name__ == "__main__":
    main()
