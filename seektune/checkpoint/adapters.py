"""Adapters at rest: `adapter_model.safetensors` and `adapter_config.json` in PEFT's form and names, both ways.

PEFT reads them on the transformers model. That model has no MTP block, so its adapters stand in a file beside.
Shapes: R rank, I inputs, O outputs, E experts, F expert width.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seektune.checkpoint.publish import complete_folder

WEIGHTS, MTP_WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_mtp.safetensors", "adapter_config.json"
OWN = "seektune.json"
"""What PEFT has no key for: `merge_into`, the format whose rounding the adapter was trained through."""
PREFIX = "base_model.model."
"""PEFT wraps a model twice."""


@dataclass(frozen=True)
class Change:
    """A low-rank change of one weight: `scaling * B A`, or of each expert's."""

    a: Tensor
    """`[R, I]`, or `[E, R, I]`."""
    b: Tensor
    """`[O, R]`, or `[E, O, R]`."""
    scaling: float
    magnitude: Tensor | None = None
    """DoRA: the length of each row of the changed weight, `[O]`."""
    is_table: bool = False
    """The weight is an embedding table `[I, O]`, the transpose of a linear map's."""

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[-2]

    def applied(self, weight: Tensor, expert: int | None, share: float = 1.0) -> Tensor:
        """The changed weight in fp32, from the decoded one."""
        a, b = (self.a, self.b) if expert is None else (self.a[expert], self.b[expert])
        delta = (share * self.scaling) * (b.float() @ a.float())
        changed = weight.float() + (delta.T if self.is_table else delta)
        if self.magnitude is None:
            return changed
        return (self.magnitude.float() / changed.norm(dim=1))[:, None] * changed


_RULES = (
    (r"^embed$", "model.embed_tokens"),
    (r"^head$", "lm_head"),
    (r"^layers\.", "model.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ffn\.", ".mlp."),
    (r"\.wq_a$", ".q_a_proj"),
    (r"\.wq_b$", ".q_b_proj"),
    (r"\.wkv$", ".kv_proj"),
    (r"\.wgate$", ".gate_proj"),
    (r"\.wo_a$", ".o_a_proj"),
    (r"\.wo_b$", ".o_b_proj"),
    (r"\.shared_experts\.w1$", ".shared_experts.gate_proj"),
    (r"\.shared_experts\.w2$", ".shared_experts.down_proj"),
    (r"\.shared_experts\.w3$", ".shared_experts.up_proj"),
)
"""From the released names to those of transformers; each is undone by reading it backwards."""
_EXPERTS = re.compile(r"(.*\.experts)\.(w[123])")


def transformers_name(released: str) -> str:
    """What transformers calls a module; routed experts aside, which it keeps in two parameters of one module."""
    for pattern, theirs in _RULES:
        released = re.sub(pattern, theirs, released)
    return released


def released_name(theirs: str) -> str:
    """The inverse."""
    for pattern, text in reversed(_RULES):
        ours = re.sub(r"[\^$]|\\(?=\.)", "", pattern)
        anchored = ("^" if pattern.startswith("^") else "") + re.escape(text) + ("$" if pattern.endswith("$") else "")
        theirs = re.sub(anchored, ours, theirs)
    return theirs


def write_adapter(
    folder: Path,
    changes: Mapping[str, Change],
    facts: Mapping[str, Any],
    recipe: str = "",
    merge_into: str | None = None,
) -> None:
    """Write the files; the folder appears when it is complete.

    Args:
        folder: a new or empty folder, or an older adapter's.
        changes: by released module name; `layers.N.ffn.experts.w1` is that matrix of all experts.
        facts: further keys of adapter_config.json, such as the base model and its revision.
        recipe: the training recipe, kept beside as recipe.yaml.
        merge_into: the format whose rounding it was trained through.

    Raises:
        OSError: writing failed.
    """
    main = {name: change for name, change in changes.items() if not name.startswith("mtp.")}
    ahead = {name: change for name, change in changes.items() if name.startswith("mtp.")}
    modules = [*_as_peft(main)]
    with complete_folder(folder, replace=True) as scratch:
        save_file(_tensors(modules), scratch / WEIGHTS, {"format": "pt"})
        if ahead:
            mtp = [*_as_peft(ahead)]
            save_file(_tensors(mtp), scratch / MTP_WEIGHTS, {"format": "pt"})
        config = _config(modules + (mtp if ahead else []), changes) | dict(facts)
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (scratch / OWN).write_text(json.dumps({"merge_into": merge_into}) + "\n", encoding="utf-8")
        if recipe:
            (scratch / "recipe.yaml").write_text(recipe, encoding="utf-8")


def read_adapter(folder: Path) -> tuple[dict[str, Change], dict[str, Any]]:
    """Changes by released module name, and adapter_config.json.

    Raises:
        ValueError: a file is missing or damaged, or it is no LoRA of this architecture.
    """
    config = _read_config(folder)
    tensors: dict[str, Tensor] = {}
    for file in (folder / WEIGHTS, folder / MTP_WEIGHTS):
        if file.name == MTP_WEIGHTS and not file.exists():
            continue
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from None
    changes: dict[str, Change] = {}
    for key in tensors:
        if key.endswith((".lora_A.weight", ".lora_embedding_A")):
            changes |= _as_released(key, tensors, config, folder)
    if not changes:
        raise ValueError(f"{folder / WEIGHTS} holds no LoRA weights")
    return changes, config


def trained_for(folder: Path) -> str | None:
    """The format whose rounding an adapter was trained through, if any.

    Raises:
        ValueError: the file that says so is damaged.
    """
    file = folder / OWN
    if not file.is_file():
        return None
    try:
        found: str | None = json.loads(file.read_text(encoding="utf-8"))["merge_into"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged") from None
    return found


@dataclass(frozen=True)
class _Module:
    """One LoRA layer as PEFT has it."""

    key: str
    """Of its tensors, without prefix and suffix."""
    target: str
    """Module or parameter that the config names."""
    is_parameter: bool
    is_embedding: bool
    a: Tensor
    b: Tensor
    rank: int
    scaling: float
    magnitude: Tensor | None = None


def _as_peft(changes: Mapping[str, Change]) -> Iterator[_Module]:
    experts: dict[str, dict[str, Change]] = {}
    for name, change in changes.items():
        if found := _EXPERTS.fullmatch(name):
            experts.setdefault(found[1], {})[found[2]] = change
            continue
        theirs = transformers_name(name)
        # transformers' grouped map has another output than PEFT expects of a linear map, so its weight is the target
        grouped = name.endswith(".wo_a")
        target = f"{theirs}.weight" if grouped else theirs
        factors = change.a, change.b, change.rank, change.scaling, change.magnitude
        yield _Module(theirs, target, grouped, change.is_table, *factors)
    for name, matrices in experts.items():
        yield from _experts_as_peft(transformers_name(f"{name}.").removesuffix("."), matrices)


def _experts_as_peft(theirs: str, matrices: Mapping[str, Change]) -> Iterator[_Module]:
    """`gate_up_proj` holds w1 and w3 one above the other: their ranks side by side, each reaching its own rows."""
    upper, lower = matrices.get("w1"), matrices.get("w3")
    joined = [change for change in (upper, lower) if change is not None]
    inner = bool(joined) and "w2" in matrices
    if joined:
        a = torch.cat([_each(change.a, change.b) for change in joined], dim=1)
        b = torch.cat([_rows(change, change is lower) for change in joined], dim=2)
        key = f"{theirs}.base_layer" if inner else theirs
        yield _stacked(key, f"{theirs}.gate_up_proj", a, b, joined[0].scaling)
    if "w2" in matrices:
        change = matrices["w2"]
        yield _stacked(theirs, f"{theirs}.down_proj", _each(change.a, change.b), change.b, change.scaling)


def _each(a_ERI: Tensor, b_EOR: Tensor) -> Tensor:
    """A of each expert, also where all share one."""
    return a_ERI.expand(len(b_EOR), -1, -1)


def _rows(change: Change, is_lower: bool) -> Tensor:
    nothing = torch.zeros_like(change.b)
    return torch.cat([nothing, change.b] if is_lower else [change.b, nothing], dim=1)


def _stacked(key: str, target: str, a_ERI: Tensor, b_EOR: Tensor, scaling: float) -> _Module:
    # PEFT counts the columns of B by rank first, then by expert
    b = b_EOR.permute(1, 2, 0).flatten(1)
    return _Module(key, target, True, False, a_ERI.flatten(0, 1), b, a_ERI.shape[1], scaling)


def _tensors(modules: list[_Module]) -> dict[str, Tensor]:
    out = {}
    for module in modules:
        a, b = ("lora_embedding_A", "lora_embedding_B") if module.is_embedding else ("lora_A.weight", "lora_B.weight")
        out[f"{PREFIX}{module.key}.{a}"] = module.a.contiguous()
        out[f"{PREFIX}{module.key}.{b}"] = module.b.contiguous()
        if module.magnitude is not None:
            out[f"{PREFIX}{module.key}.lora_magnitude_vector"] = module.magnitude.contiguous()
    return out


def _config(modules: list[_Module], changes: Mapping[str, Change]) -> dict[str, Any]:
    main = [module for module in modules if not module.key.startswith("mtp.")]
    first = (main or modules)[0]
    rank, alpha = first.rank, first.scaling * first.rank
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


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} is no adapter: it has no {CONFIG}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{folder / CONFIG} is damaged: it is not JSON") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{folder / CONFIG} is not of a LoRA adapter (peft_type LORA)")
    return config


def _as_released(key: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> dict[str, Change]:
    """The change, or the two of `gate_up_proj`, whose A has this key."""
    embedding = key.endswith(".lora_embedding_A")
    theirs = key.removeprefix(PREFIX).removesuffix(".lora_embedding_A" if embedding else ".lora_A.weight")
    other = key.replace("lora_embedding_A", "lora_embedding_B").replace(".lora_A.", ".lora_B.")
    if other not in tensors:
        raise ValueError(f"{folder / WEIGHTS} lacks {other}")
    a, b = tensors[key], tensors[other]
    if theirs.endswith((".experts", ".experts.base_layer")):
        return _experts_as_released(theirs, a, b, config)
    magnitude = tensors.get(f"{PREFIX}{theirs}.lora_magnitude_vector")
    target = f"{theirs}.weight" if theirs.endswith(".o_a_proj") else theirs
    return {released_name(theirs): Change(a, b, _scaling(target, config), magnitude, embedding)}


def _experts_as_released(theirs: str, a: Tensor, b: Tensor, config: Mapping[str, Any]) -> dict[str, Change]:
    base = theirs.removesuffix(".base_layer")
    parameters = [name for name in config["target_parameters"] or [] if name.startswith(f"{base}.")]
    inner = theirs != base or (len(parameters) == 1 and parameters[0].endswith("gate_up_proj"))
    target = f"{base}.{'gate_up_proj' if inner else 'down_proj'}"
    experts = len(a) // _rank(target, config)
    a_ERI, b_EOR = a.unflatten(0, (experts, -1)), b.unflatten(1, (-1, experts)).permute(2, 0, 1)
    scaling, ours = _scaling(target, config), released_name(f"{base}.").removesuffix(".")
    if not inner:
        return {f"{ours}.w2": Change(a_ERI, b_EOR, scaling)}
    upper, lower = b_EOR.chunk(2, dim=1)
    halves = {"w1": upper, "w3": lower}
    return {f"{ours}.{name}": _trimmed(a_ERI, half, scaling) for name, half in halves.items() if half.any()}


def _trimmed(a_ERI: Tensor, b_EOR: Tensor, scaling: float) -> Change:
    """Without the ranks that reach no row."""
    used = b_EOR.flatten(0, 1).any(dim=0)
    return Change(a_ERI[:, used].contiguous(), b_EOR[:, :, used].contiguous(), scaling)


def _rank(target: str, config: Mapping[str, Any]) -> int:
    return int(config.get("rank_pattern", {}).get(target, config["r"]))


def _scaling(target: str, config: Mapping[str, Any]) -> float:
    rank, alpha = _rank(target, config), float(config.get("alpha_pattern", {}).get(target, config["lora_alpha"]))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
