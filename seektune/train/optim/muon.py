"""Muon for matrices and AdamW for everything else, as DeepSeek-V4 is trained (report, section 2.4)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import sqrt
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from seektune.parallel.matrix_exchange import MatrixRound, ShardPlace, run_rounds, stack_of
from seektune.parallel.matrix_plan import ROUND_ELEMENTS, Unit, assign, rounds
from seektune.parallel.placement import local
from seektune.train.optim.adamw import AdamW
from seektune.train.optim.master import fp32_zeros
from seektune.train.optim.newton_schulz import iteration_flops, orthogonalize

GAMMA = 0.18
"""RMS of an update of Muon, close to that of AdamW, so that both take one learning rate."""
CACHED = 2**20
"""Bytes of matrices that a CPU iterates on at once, so that they stay in its cache."""
MATRICES = "matrices"
"""Setting of a group: how many matrices the rows of a 2-dim parameter are; 0 if AdamW trains the group."""
Chosen: TypeAlias = tuple[Tensor, dict[str, Any], tuple[int, int]]
"""A parameter, its group, and its place in the groups."""

MeshOf: TypeAlias = Callable[[Tensor], DeviceMesh | None]


class Muon(AdamW):
    """Momentum, orthogonalised: `M <- mu M + G`, `O = NS(mu M + G)`, `W <- W (1 - lr wd) - lr 0.18 sqrt(max(R, C)) O`.

    Each matrix is whole when it is orthogonalised, by one process, in the parameter's dtype; momentum is fp32 and
    sharded as the parameter is. Of a parameter with three dims each entry of the first is a matrix.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-20,
        weight_decay: float = 0.1,
        master: Literal["fp32", "bf16_stochastic"] = "fp32",
        seed: int = 0,
        mesh_of: MeshOf = lambda parameter: None,
        round_elements: int = ROUND_ELEMENTS,
    ):
        """`mesh_of` gives FSDP2's mesh of a parameter, `round_elements` bounds the whole matrices held at a time."""
        super().__init__(groups, lr, betas, eps, weight_decay, master, seed)
        self._momentum = momentum
        self._mesh_of = mesh_of
        self._round_elements = round_elements
        self._matrices = {parameter for group in self.param_groups if group[MATRICES] for parameter in group["params"]}
        self._rounds: dict[tuple[int, ...], list[MatrixRound]] = {}

    def zeros(self, parameter: Tensor) -> dict[str, Tensor]:
        """The momentum of matrices, fp32; for other parameters as AdamW."""
        return {"momentum": fp32_zeros(parameter)} if parameter in self._matrices else super().zeros(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        chosen: list[Chosen] = []
        for group_index, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                if group[MATRICES]:
                    chosen.append((parameter, group, (group_index, index)))
                else:
                    self.update(parameter, group, (group_index, index))
        self._update_matrices(chosen)

    def _update_matrices(self, chosen: Sequence[Chosen]) -> None:
        for parameter, _, _ in chosen:
            momentum = self.counted(parameter)["momentum"]
            torch.add(local(parameter.grad), momentum, alpha=self._momentum, out=momentum)  # type: ignore[arg-type]

        def read(unit: Unit) -> Tensor:
            return self._direction(chosen[unit.parameter][0], unit)

        def apply(unit: Unit, piece: Tensor) -> None:
            self._move(chosen[unit.parameter], unit, piece)

        run_rounds(self._make_rounds(chosen), read, self._orthogonalized, apply)

    def _direction(self, parameter: Tensor, unit: Unit) -> Tensor:
        """Nesterov's look ahead `mu M + G` of a unit's local piece, in the parameter's dtype, where it is computed."""
        part = ... if unit.index is None else unit.index
        gradient = local(parameter.grad)[part]  # type: ignore[arg-type]
        momentum = self.state[parameter]["momentum"][part]
        ahead = torch.empty_like(momentum, dtype=parameter.dtype)
        return torch.add(gradient, momentum, alpha=self._momentum, out=ahead).to(_device_of(parameter))

    def _orthogonalized(self, matrices: list[Tensor]) -> list[Tensor]:
        """The matrices orthogonalised, small ones of one shape together."""
        found: dict[int, Tensor] = {}
        for numbers, most in self._batches(matrices):
            parts = [matrices[number] for number in numbers]
            together = parts[0] if len(parts) == 1 else torch.cat(parts)
            done = [orthogonalize(part) for part in together.split(most)]
            whole = done[0] if len(done) == 1 else torch.cat(done)
            found |= dict(zip(numbers, whole.split([len(part) for part in parts]), strict=True))
        return [found[number] for number in range(len(matrices))]

    def _batches(self, matrices: list[Tensor]) -> Iterator[tuple[list[int], int]]:
        """Indices of what is computed at once, and the most matrices of their shape that are."""
        shapes = defaultdict(list)
        for number, x_NRC in enumerate(matrices):
            shapes[x_NRC.shape[1:]].append(number)
        for shape, numbers in shapes.items():
            first = matrices[numbers[0]]
            elements = CACHED // first.itemsize if first.device.type == "cpu" else self._round_elements
            most = max(1, elements // shape.numel())
            batch: list[int] = []
            for number in numbers:
                if batch and sum(len(matrices[n]) for n in [*batch, number]) > most:
                    yield batch, most
                    batch = []
                batch.append(number)
            yield batch, most

    def _move(self, chosen: Chosen, unit: Unit, piece: Tensor) -> None:
        """Decay the weight and move it along a piece of the orthogonalised matrices."""
        parameter, group, index = chosen
        part = ... if unit.index is None else unit.index
        place = index if unit.index is None else (*index, unit.index)
        scale = GAMMA * sqrt(max(unit.shape[1:]))
        with self.fp32_weight(parameter, group, place, part) as weight:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(piece.to(weight.device).reshape(weight.shape), alpha=-group["lr"] * scale)

    def _make_rounds(self, chosen: Sequence[Chosen]) -> list[MatrixRound]:
        """The rounds of the parameters that have gradients; those of one step serve the next ones too."""
        key = tuple(id(parameter) for parameter, _, _ in chosen)
        if key not in self._rounds:
            self._rounds[key] = list(plan_rounds(chosen, self._mesh_of, self._round_elements))
        return self._rounds[key]


def plan_rounds(chosen: Sequence[Chosen], mesh_of: MeshOf, elements: int) -> Iterable[MatrixRound]:
    """The rounds of each group of processes that share parameters of one dtype."""
    together: dict[tuple[ShardPlace, torch.dtype, torch.device], list[Unit]] = defaultdict(list)
    for number, (parameter, group, _) in enumerate(chosen):
        key = ShardPlace.of(mesh_of(parameter)), parameter.dtype, _device_of(parameter)
        together[key] += stack_of(parameter, group[MATRICES]).units(number)
    for (place, dtype, device), units in together.items():
        for each in rounds(assign(units, place.shards, place.copies, iteration_flops), elements):
            yield MatrixRound(each, place, dtype, device)


def _device_of(parameter: Tensor) -> torch.device:
    """Where a parameter's matrices are computed: the device of its mesh, also if its shards are in host memory."""
    return torch.device(parameter.device_mesh.device_type) if isinstance(parameter, DTensor) else parameter.device
