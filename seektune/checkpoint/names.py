"""Map between the model's tensor names and the released ones: rules that work in both directions."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Shape = tuple[int, ...]

LONGEST_NAME = 255
"""Bytes, as file systems have it."""


@dataclass(frozen=True)
class Rule:
    """A pair of name patterns. If the released one has `{expert}`, it is a slice of the model's stacked tensor."""

    model: str
    released: str


RULES = (
    Rule("{prefix}experts.{matrix}", "{prefix}experts.{expert}.{matrix}.weight"),
    Rule("{prefix}.experts.{matrix}.{byte}", "{prefix}.experts.{expert}.{matrix}.{byte}"),
    Rule("{prefix}hc_{site}.{part}", "{prefix}hc_{site}_{part}"),
    Rule("{prefix}", "{prefix}"),
)
"""The first rule that matches a name applies; the last keeps the name. The second is for quantized experts."""

FIELDS = {
    "prefix": r"(?P<prefix>.*?)",
    "matrix": r"(?P<matrix>w[123])",
    "expert": r"(?P<expert>\d+)",
    "byte": r"(?P<byte>weight|scale)",
    "site": r"(?P<site>attn|ffn|head)",
    "part": r"(?P<part>fn|base|scale)",
}
SCALE = ".scale"
"""The block scales of a quantized `x.weight` are stored as `x.scale`."""


def check_name(name: str, file: Path) -> None:
    """Check the name of a tensor or of a file that `file` lists: messages hold it, and systems must open it.

    Raises:
        ValueError: it is longer than any file's name, or holds control characters or half of a surrogate pair.
    """
    if not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        fault = f"the name {name[:80]!r} is not printable, or longer than {LONGEST_NAME} bytes"
        raise ValueError(f"{file} is damaged: {fault}")


@dataclass(frozen=True)
class Slot:
    """Where a released tensor belongs in the model: a tensor, or one expert's slice of it."""

    released: str
    model: str
    expert: int | None
    shape: Shape


def slots(shapes: Mapping[str, Shape]) -> Iterator[Slot]:
    """The released tensors of a model with these names and shapes (without scales)."""
    for name, shape in shapes.items():
        rule, fields = _match(name, "model")
        if "{expert}" in rule.released:
            for expert in range(shape[0]):
                yield Slot(rule.released.format(**fields, expert=expert), name, expert, shape[1:])
        else:
            yield Slot(rule.released.format(**fields), name, None, shape)


def model_name(released: str) -> tuple[str, int | None]:
    """The model's name of a released tensor, and the expert index if it is a slice."""
    rule, fields = _match(released, "released")
    expert = fields.pop("expert", None)
    return rule.model.format(**fields), None if expert is None else int(expert)


def scale_name(released: str) -> str:
    """The name of a quantized weight's scales."""
    return released.removesuffix(".weight") + SCALE


def _match(name: str, side: str) -> tuple[Rule, dict[str, str]]:
    for rule in RULES:
        pattern = rule.model if side == "model" else rule.released
        regex = re.escape(pattern).replace(r"\{", "{").replace(r"\}", "}").format(**FIELDS)
        if found := re.fullmatch(regex, name):
            return rule, found.groupdict()
    raise AssertionError("the last rule matches every name")
