"""Convert adapters to and from PEFT's format: tensors, config, and stacked routed experts.

Shapes: R rank, I inputs, O outputs, E experts, F expert width.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seektune.checkpoint.transformers_names import transformers_name
from seektune.lora.base_copies import base_copies
from seektune.lora.delta import LoraDelta
from seektune.lora.peft_config import PeftConfig
from seektune.lora.peft_experts import stack_experts
from seektune.lora.peft_names import PREFIX, released_module, stem_of, wrapped_module

_EXPERTS = re.compile(r"(.*\.experts)\.(w[123])")
EXPERTS = (".experts", ".experts.base_layer")
"""How the names of PEFT's wrappers of experts end."""
FIRST = (".lora_A.weight", ".lora_embedding_A")
"""How the keys of a module's A end."""


@dataclass(frozen=True)
class PeftModule:
    """One LoRA layer in PEFT's format."""

    key: str
    """Key of its tensors, without prefix and suffix."""
    target: str
    """Module or parameter in the config's targets."""
    is_parameter: bool
    is_embedding: bool
    a: Tensor
    b: Tensor
    rank: int
    scaling: float
    magnitude: Tensor | None = None


def as_peft(changes: Mapping[str, LoraDelta]) -> Iterator[PeftModule]:
    """Convert changes by released module name to PEFT's layers."""
    experts: dict[str, dict[str, LoraDelta]] = {}
    for name, change in changes.items():
        if found := _EXPERTS.fullmatch(name):
            experts.setdefault(found[1], {})[found[2]] = change
            continue
        theirs = transformers_name(name)
        # PEFT cannot wrap transformers' grouped linear layer as a module, so its weight is the target
        grouped = name.endswith(".wo_a")
        target = f"{theirs}.weight" if grouped else theirs
        factors = change.a, change.b, change.rank, change.scaling, change.magnitude
        yield PeftModule(theirs, target, grouped, change.is_table, *factors)
    for name, matrices in experts.items():
        yield from _experts_as_peft(transformers_name(f"{name}.").removesuffix("."), matrices)


def _experts_as_peft(theirs: str, matrices: Mapping[str, LoraDelta]) -> Iterator[PeftModule]:
    """`gate_up_proj` stacks the rows of w1 and w3: ranks are concatenated, and each reaches its own half of rows."""
    upper = matrices.get("w1")
    lower = matrices.get("w3")
    joined = [change for change in (upper, lower) if change is not None]
    inner = bool(joined) and "w2" in matrices
    if joined:
        a = torch.cat([_each(change.a, change.b) for change in joined], dim=1)
        b = torch.cat([_rows(change, change is lower) for change in joined], dim=2)
        # the config names no targets in the MTP block, so the key alone says which parameter it is
        key = f"{theirs}.base_layer" if inner or theirs.startswith("mtp.") else theirs
        yield _stacked(key, f"{theirs}.gate_up_proj", a, b, joined[0].scaling)
    if "w2" in matrices:
        change = matrices["w2"]
        yield _stacked(theirs, f"{theirs}.down_proj", _each(change.a, change.b), change.b, change.scaling)


def _each(a_ERI: Tensor, b_EOR: Tensor) -> Tensor:
    """A of each expert; a shared A is expanded."""
    return a_ERI.expand(len(b_EOR), -1, -1)


def _rows(change: LoraDelta, is_lower: bool) -> Tensor:
    nothing = torch.zeros_like(change.b)
    return torch.cat([nothing, change.b] if is_lower else [change.b, nothing], dim=1)


def _stacked(key: str, target: str, a_ERI: Tensor, b_EOR: Tensor, scaling: float) -> PeftModule:
    # PEFT orders the columns of B by rank, then by expert
    b = b_EOR.permute(1, 2, 0).flatten(1)
    return PeftModule(key, target, True, False, a_ERI.flatten(0, 1), b, a_ERI.shape[1], scaling)


def tensors_of(modules: list[PeftModule]) -> dict[str, Tensor]:
    """The tensors of the file, by PEFT's names."""
    out = {}
    for module in modules:
        a, b = ("lora_embedding_A", "lora_embedding_B") if module.is_embedding else ("lora_A.weight", "lora_B.weight")
        out[f"{PREFIX}{module.key}.{a}"] = module.a.contiguous()
        out[f"{PREFIX}{module.key}.{b}"] = module.b.contiguous()
        if module.magnitude is not None:
            out[f"{PREFIX}{module.key}.lora_magnitude_vector"] = module.magnitude.contiguous()
    return out


def config_of(modules: list[PeftModule], changes: Mapping[str, LoraDelta]) -> dict[str, Any]:
    """The keys of adapter_config.json for these layers."""
    main = [module for module in modules if not module.key.startswith("mtp.")]
    first = (main or modules)[0]
    rank = first.rank
    alpha = first.scaling * first.rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module.target: module.rank for module in modules if module.rank != rank},
        "alpha_pattern": {
            module.target: module.scaling * module.rank for module in modules if module.scaling * module.rank != alpha
        },
        "target_modules": [module.target for module in main if not module.is_parameter],
        "target_parameters": [module.target for module in main if module.is_parameter] or None,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": any(change.magnitude is not None for change in changes.values()),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def as_released(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, LoraDelta]:
    """Convert PEFT's tensors and config to changes by released module name.

    Raises:
        ValueError: config and shapes do not match, or the adapter holds more than low-rank changes of weights.
    """
    firsts = [key for key in tensors if key.endswith(FIRST)]
    terms = PeftConfig.read(config, [target for key in firsts for target in _targets_of(wrapped_module(key))])
    changes: dict[str, LoraDelta] = {}
    known: set[str] = set()
    for key in firsts:
        found = _as_released(key, tensors, terms)
        if twice := sorted(changes.keys() & found.keys()):
            raise ValueError(f"{key} changes {twice[0]} a second time")
        changes |= found
        known |= {key, _partner(key)}
        known |= {_magnitude_of(key)} if any(each.magnitude is not None for each in found.values()) else set()
    known |= {copy.key for copy in base_copies(tensors)}
    if strange := sorted(tensors.keys() - known):
        raise ValueError(f"it holds {strange[0]}, which belongs to no pair of A and B")
    return stack_experts(changes)


def _targets_of(theirs: str) -> list[str]:
    """The names by which PEFT's patterns choose rank and alpha of a wrapped module; of experts, either."""
    if theirs.endswith(EXPERTS):
        base = theirs.removesuffix(".base_layer")
        return [f"{base}.gate_up_proj", f"{base}.down_proj"]
    return [f"{theirs}.weight" if theirs.endswith(".o_a_proj") else theirs]


def _partner(key: str) -> str:
    """B's key, from A's."""
    return key.replace("lora_embedding_A", "lora_embedding_B").replace(".lora_A.", ".lora_B.")


def _magnitude_of(key: str) -> str:
    """The key of DoRA's magnitudes, from A's."""
    return f"{stem_of(key)}.lora_magnitude_vector"


def _as_released(key: str, tensors: Mapping[str, Tensor], terms: PeftConfig) -> dict[str, LoraDelta]:
    """The change whose A has this key, or the two changes of a `gate_up_proj`."""
    embedding = key.endswith(".lora_embedding_A")
    theirs = wrapped_module(key)
    other = _partner(key)
    if other not in tensors:
        raise ValueError(f"it lacks {other}")
    a = tensors[key]
    b = tensors[other]
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(f"{key} {list(a.shape)} and {other} {list(b.shape)} have different ranks")
    if theirs.endswith(EXPERTS):
        return _experts_as_released(theirs, a, b, terms)
    (target,) = _targets_of(theirs)
    name = released_module(theirs)
    if _EXPERTS.fullmatch(name):
        raise ValueError(f"{key} is a matrix of all experts, which PEFT stores under {name.rpartition('.')[0]}")
    if len(a) != (rank := terms.rank_of(target)):
        raise ValueError(f"{key} has rank {len(a)}, but {rank} in its config")
    magnitude = tensors.get(_magnitude_of(key))
    if terms.dora and magnitude is None:
        raise ValueError(f"it lacks {_magnitude_of(key)}")
    if magnitude is not None and (embedding or magnitude.shape != b.shape[:1]):
        reason = "but DoRA is not supported on embeddings" if embedding else f"not {list(b.shape[:1])}"
        raise ValueError(f"{_magnitude_of(key)} has shape {list(magnitude.shape)}, {reason}")
    change = LoraDelta(a, b, terms.scaling_of(target), magnitude, embedding)
    if ".indexer." in name:
        if not change.is_nothing:
            raise ValueError(f"{key} changes the indexer ({name}), which is not supported; exclude it with PEFT")
        return {}
    return {name: change}


def _experts_as_released(theirs: str, a: Tensor, b: Tensor, terms: PeftConfig) -> dict[str, LoraDelta]:
    base = theirs.removesuffix(".base_layer")
    both = f"{base}.gate_up_proj"
    # with two targets, PEFT nests one wrapper in the other
    inner = theirs != base or (terms.targets(both) and not terms.targets(f"{base}.down_proj"))
    target = _targets_of(theirs)[0 if inner else 1]
    rank = terms.rank_of(target)
    if len(a) == 0 or len(a) % rank:
        raise ValueError(f"A of {target} {list(a.shape)} does not have {rank} rows, the rank in its config, per expert")
    a_ERI = a.unflatten(0, (-1, rank))
    b_EOR = b.unflatten(1, (rank, -1)).permute(2, 0, 1)
    scaling = terms.scaling_of(target)
    ours = released_module(f"{base}.").removesuffix(".")
    if not inner:
        return {f"{ours}.w2": LoraDelta(a_ERI, b_EOR, scaling)}
    if len(b) % 2:
        raise ValueError(f"B of {target} {list(b.shape)} has an odd number of rows, so it has no two halves")
    upper, lower = b_EOR.chunk(2, dim=1)
    halves = {"w1": upper, "w3": lower}
    if not b.any():
        # not trained yet, so B does not show which ranks reach which rows
        return {f"{ours}.{name}": LoraDelta(a_ERI, half, scaling) for name, half in halves.items()}
    return {f"{ours}.{name}": _trimmed(a_ERI, half, scaling) for name, half in halves.items() if half.any()}


def _trimmed(a_ERI: Tensor, b_EOR: Tensor, scaling: float) -> LoraDelta:
    """The change without ranks whose columns of B are zero."""
    used = b_EOR.flatten(0, 1).any(dim=0)
    return LoraDelta(a_ERI[:, used].contiguous(), b_EOR[:, :, used].contiguous(), scaling)
