"""The command `report`."""

from pathlib import Path
from typing import Annotated

import typer

from seektune.cli.options import Action, path_flag

REPORT_HELP = """Write the report of a run again, compare several runs, or show the report of a run that continues.

\b
Write report.html of a finished run again:
  seektune report runs/mine
Compare runs in one page: losses, what differs in their recipes, evaluations with intervals:
  seektune report runs/mine runs/other --out comparison.html
Show a run in a browser on this machine while it trains:
  seektune report runs/mine --live --port 8050

The page needs nothing from other hosts. --live answers only to this machine; use `ssh -L 8050:localhost:8050 HOST`
to see it from another one.
"""


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", parser=path_flag, help="Folders of runs.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=path_flag, help="File of a comparison.", show_default="comparison.html"),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Serve the report of one run on this machine.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port of --live; 0 is any.")] = 8050,
    refresh: Annotated[
        int, typer.Option(min=1, metavar="SECONDS", help="Time after which the page of --live is loaded again.")
    ] = 10,
) -> Action:
    """The command `report`."""
    if live and out is not None:
        raise ValueError("--live shows a page and writes none; leave --out out")

    def run() -> None:
        from seektune.workflows import report as workflow

        if live:
            workflow.live(runs, port, refresh)
        else:
            workflow.report(runs, out)

    return run
