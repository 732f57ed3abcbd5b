"""How many processes share the work, by axis."""

from math import lcm

from pydantic import PositiveInt

from seektune.section import Section


class ParallelConfig(Section):
    """Sizes of the mesh: world = pp_size x cp_size x dp; ep_size is carved out of cp_size x dp and divides it."""

    pp_size: PositiveInt = 1
    """Pipeline stages: consecutive groups of layers, each on its own processes."""
    ep_size: PositiveInt = 1
    """Processes over which the routed experts are split; must divide their number (256 in V4-Flash, 384 in V4-Pro)."""
    cp_size: PositiveInt = 1
    """Processes over which the tokens of one row are split; for rows too long for one device."""

    def least_world(self) -> int:
        """The smallest number of processes with which these sizes multiply out."""
        return self.pp_size * lcm(self.cp_size, self.ep_size)
