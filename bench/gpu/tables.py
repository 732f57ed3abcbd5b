"""The tables of docs/performance.md from a result."""

from typing import Any

LENGTHS = (4096, 16384)
COLUMNS = "| layer | tokens | ms | TFLOP/s | of matmul | peak GB |\n|---|---|---|---|---|---|"


def tables(result: dict[str, Any]) -> list[str]:
    """Layers with frozen experts, packed layers of bf16 and of FP8 inputs, and kernels; empty tables are left out."""
    made = [
        _table(COLUMNS, layer_rows(result, "layers, frozen experts")),
        _table(COLUMNS, layer_rows(result, "layers, packed")),
        _table(COLUMNS, layer_rows(result, "layers, FP8 inputs")),
        _table("| kernel | tokens | forward ms | backward ms |\n|---|---|---|---|", kernel_rows(result)),
    ]
    return [table for table in made if table]


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([head, *rows]) if rows else ""


def found(result: dict[str, Any], name: str) -> dict[str, Any]:
    """What a part found; empty if it was not measured."""
    table: dict[str, Any] = result["parts"].get(name, {}).get("found", {})
    return table


def layer_rows(result: dict[str, Any], part: str) -> list[str]:
    """A row for each kind of layer and length."""
    return [
        f"| {kind} | {length:,} | {each['ms']:.1f} | {each['tflops']:.0f} | {_shown(each['share_of_matmul'], '.0%')} | "
        f"{_shown(each['peak_gb'])} |".replace("%", " %")
        for length in LENGTHS
        for kind, each in found(result, f"{part}, {length}").items()
    ]


def kernel_rows(result: dict[str, Any]) -> list[str]:
    """A row for each kernel and length."""
    return [
        f"| {name} | {length:,} | {each['forward_ms']:.1f} | {_shown(each.get('backward_ms'))} |"
        for length in LENGTHS
        for name, each in found(result, f"kernels, {length}").items()
    ]


def _shown(value: float | None, form: str = ".1f") -> str:
    return "" if value is None else format(value, form)
