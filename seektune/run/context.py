"""The context of a training run: recipe, run folder, start, mesh and signals."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from seektune.model.config import DeepseekV4Config
from seektune.parallel.mesh import Mesh
from seektune.recipe.recipe import Recipe
from seektune.run.resume import RunStart, product_of
from seektune.signals import Interrupted, Interruption


@dataclass(frozen=True)
class RunContext:
    """The context of one run on one process."""

    recipe: Recipe
    name: str
    """Title of the report."""
    folder: Path
    """The run folder."""
    start: RunStart
    config: DeepseekV4Config
    """The model's config."""
    mesh: Mesh
    interruption: Interruption

    @property
    def product(self) -> Path:
        """Folder of the trained weights or adapters."""
        return self.folder / product_of(self.recipe)

    @property
    def is_fresh(self) -> bool:
        """Whether the run starts at step 0, not from a checkpoint."""
        return self.start.checkpoint is None

    def stop_if_signalled(self) -> None:
        """Stop here if a signal reached any process of the job.

        Raises:
            Interrupted: on every process.
        """
        self.interruption.leave_together(self.mesh.any)

    def stop_alone_if_signalled(self) -> None:
        """Stop here if a signal reached this process; for what only rank 0 runs.

        Raises:
            Interrupted: on this process.
        """
        if self.interruption.name is not None:
            raise Interrupted(self.interruption.name)

    def shielded_if_parallel(self) -> AbstractContextManager[None]:
        """A block in which processes wait for each other, so that no signal stops one alone."""
        return nullcontext() if self.mesh.axes is None else self.interruption.shielded()
