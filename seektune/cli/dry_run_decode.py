"""The options about a dry run of `generate` and `serve`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from seektune.cli.processes import DecodeFlags
from seektune.generate.cache_limit import CacheLimit, CacheUse

if TYPE_CHECKING:
    from seektune.generate.session import LoadOptions

GPU = "h100-80gb"


@dataclass(frozen=True)
class DecodeDryRun:
    """The flags of a dry run of a command that decodes."""

    enabled: bool = False
    world_size: int | None = None
    gpu: str | None = None

    def run(
        self,
        model: str,
        read: Callable[[], tuple["LoadOptions", CacheLimit, CacheUse]],
        flags: DecodeFlags,
    ) -> None:
        """Print what each process would hold of a model.

        Raises:
            ValueError: the flags, the model or the layout are invalid.
        """
        # torch, which `read` imports, warns in C++ about a process group without a real backend
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
        from seektune.workflows.dry_run_decode import DecodeLayout, dry_run_decode

        world = self.world_size or flags.launch.count() * flags.launch.nodes
        layout = DecodeLayout(world, flags.ep_size(), flags.pp, self.gpu or GPU)
        reading, limit, caches = read()
        dry_run_decode(model, reading, layout, limit, caches)


def dry_run_flags(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what each process would hold of MODEL; load nothing.")
    ] = False,
    world_size: Annotated[
        int | None, typer.Option("--world-size", min=1, metavar="N", help="Dry run: number of processes in all.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="KIND", help="Dry run: GPU model.", show_default=GPU)] = None,
) -> DecodeDryRun:
    """Options about a dry run.

    Raises:
        ValueError: they have no effect.
    """
    if not dry_run and (world_size is not None or gpu is not None):
        raise ValueError("--world-size and --gpu need --dry-run")
    return DecodeDryRun(dry_run, world_size, gpu)
