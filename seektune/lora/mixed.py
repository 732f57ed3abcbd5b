"""The mixed formats of a merge: the base's kinds, with another kind for the matrices that an adapter changes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from seektune.checkpoint.carried import carried_names
from seektune.checkpoint.engine_names import engine_names, fused
from seektune.checkpoint.formats import EXPERTS, FORMATS, LINEARS, QUANTIZED
from seektune.checkpoint.source import FolderSource

MIXED = {"mixed-fp8": "fp8", "mixed-bf16": "bf16"}
"""The formats that store only the changed matrices as that kind; others keep the base's kind."""


@dataclass(frozen=True)
class Mixed:
    """The base's kinds, with another kind for the low-bit matrices that an adapter changes."""

    base: FolderSource
    changed: frozenset[str]
    """Changed matrices that may be low-bit, and those that engines load into one parameter with them."""
    own: str
    """`fp8` or `bf16`."""
    experts: tuple[str, ...]
    """The routed experts that `expert_dtype` describes."""

    @classmethod
    def of(cls, base: FolderSource, touched: Sequence[str], to: str) -> "Mixed":
        """The rule of a format of `MIXED` for an adapter that changes these tensors."""
        changed = {name for name in touched if re.search(f"{EXPERTS}|{LINEARS}", name)}
        # FP8 of any kind can stay beside FP8
        convertible = ("fp4",) if MIXED[to] == "fp8" else tuple(QUANTIZED)
        changed |= _partners(base, changed, convertible)
        names = [name for name, _ in base.shapes()]
        carried = carried_names(names)
        experts = [name for name in names if re.search(EXPERTS, name) and name not in carried]
        if MIXED[to] == "fp8" and changed.issuperset(name for name in experts if not name.startswith("mtp.")):
            changed |= {name for name in experts if base.kind(name) in convertible}
        return cls(base, frozenset(changed), MIXED[to], tuple(experts))

    def kind(self, released: str) -> str:
        """`bf16`, or FP8 with scales in the dtype that engines expect; the base's kind of what is not changed."""
        before = self.base.kind(released)
        if released not in self.changed:
            return before
        if self.own == "bf16":
            return "bf16"
        return "fp8_f32_pow2" if before == "fp8_f32" else FORMATS["fp8"].kind(released)

    def config(self, source: dict[str, Any]) -> dict[str, Any]:
        """The base's config, with what tells loaders where the kinds differ from it."""
        quantization = dict(source.get("quantization_config") or {})
        if self.own == "bf16" and quantization:
            kept = set(quantization.get("modules_to_not_convert") or ())
            quantization["modules_to_not_convert"] = sorted(kept | set(self._names(source["num_hidden_layers"])))
            return {**source, "quantization_config": quantization}
        if self.own == "fp8" and self._expert_kinds() == {"fp8_f32_pow2"}:
            return {**source, "expert_dtype": "fp8"}
        return source

    def notes(self) -> Iterator[str]:
        """What engines cannot load of the result, or only with a setting."""
        kinds = self._expert_kinds()
        if self.own == "fp8" and "fp4" in kinds and len(kinds) > 1:
            yield "note: some routed experts are FP8, others FP4, which vLLM does not load; --to fp8 stores all as FP8"
        if self.own == "bf16" and any(".shared_experts." in name for name in self.changed):
            yield "note: SGLang does not load a shared expert in bf16 beside FP8 matrices; vLLM does"
        if self.own == "bf16" and any(name.endswith(".attn.wo_a.weight") for name in self.changed):
            yield "note: SGLang needs SGLANG_OPT_FP8_WO_A_GEMM=0 to load wo_a in bf16"

    def _names(self, layers: int) -> Iterator[str]:
        for name in self.changed:
            yield from engine_names(name.removesuffix(".weight"), layers)

    def _expert_kinds(self) -> set[str]:
        return {self.kind(name) for name in self.experts}


def _partners(base: FolderSource, changed: set[str], kinds: Sequence[str]) -> set[str]:
    """The matrices of these kinds that engines load into one parameter with changed ones."""
    whole = {fused(name.removesuffix(".weight")) for name in changed}
    return {
        name for name, _ in base.shapes() if base.kind(name) in kinds and fused(name.removesuffix(".weight")) in whole
    } - changed
