"""Makes the pages and files here that follow from the code: recipes.md, recipe.schema.json and verification.md.

`python docs/render.py` writes them; a test fails where they are not what this makes.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from seektune.recipe.load import schema
from seektune.recipe.reference import reference

DOCS = Path(__file__).parent
OPENING = """# Recipes

<!-- made by `python docs/render.py` from the classes in seektune/recipe; do not edit -->

A recipe is a YAML file that says what to train. `model`, `batch` and `steps` are needed; everything else has a default.
Any key can be set on the command line by its dotted name: `--optimizer.lr=1e-4`. A misspelt key is answered with its
file, line and nearest neighbour.

```yaml
# yaml-language-server: $schema=recipe.schema.json
model:
  preset: tiny
batch:
  global_size: 16
  length: 512
steps: 100
```

The first line lets an editor (VS Code with its YAML extension, Neovim, JetBrains) complete and check keys while you
type. The file is [recipe.schema.json](recipe.schema.json), or what your installation prints:

```sh
seektune schema > recipe.schema.json
```

The shipped recipes in `examples/llm_finetune/deepseek_v4/` explain their choices line by line;
`seektune validate RECIPE` checks one without a GPU.

"""
STATUS = {"verified": "✓ verified", "missed": "✗ missed", "not verified": "… not verified"}
CARD = """# What was verified

<!-- made by `python docs/render.py` from docs/verification.yaml; do not edit -->

Each claim, what shows it, and what was seen. Numbers are compared with the files they come from by a test; the card for
machines is `docs/verification.yaml` in the repository.

{counts} Until 2026-11-27 nothing ran on a GPU; what waits for one says so.

| claim | shown by | measured | wanted | where, when | status |
|---|---|---|---|---|---|
{rows}
"""


def pages() -> dict[str, str]:
    """The text of each made file, by name."""
    return {
        "recipes.md": OPENING + reference(),
        "recipe.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
        "verification.md": verification(yaml.safe_load((DOCS / "verification.yaml").read_text(encoding="utf-8"))),
    }


def verification(card: dict[str, Any]) -> str:
    """The card as a page."""
    claims = card["claims"]
    counts = ", ".join(f"**{sum(each['status'] == status for each in claims)}** {status}" for status in STATUS)
    rows = "\n".join(_row(each, card["machines"]) for each in claims)
    return CARD.format(counts=counts + ".", rows=rows)


def _row(claim: dict[str, Any], machines: dict[str, str]) -> str:
    measured = claim.get("measured", "—")
    shown = f"{measured:.4g}" if isinstance(measured, float) else measured
    cells = [
        claim["claim"],
        f"`{claim['command']}`",
        f"{shown} {claim.get('unit', '')}".strip(),
        claim.get("bound", "").replace(">=", "≥").replace("<=", "≤"),
        f"{machines[claim['where']]}{', ' if 'when' in claim else ''}{claim.get('when', '')}",
        STATUS[claim["status"]],
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
