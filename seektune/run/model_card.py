"""The model card of an export: README.md in the Hub's format, from the run's own records."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from seektune import __version__
from seektune.data.datasets.dataset import CACHED
from seektune.evaluate.task import TaskScore
from seektune.io.atomic import write_atomically
from seektune.io.atomic_dir import CARD
from seektune.io.jsonl import read_records
from seektune.io.run_files import METRICS, VALIDATION
from seektune.recipe.load import dump_recipe
from seektune.recipe.recipe import Recipe
from seektune.run.evals import Scores, TaskComparison, compare
from seektune.train.held_out import held_out

MARK = "<!-- written by SeekTune, and written anew as long as nobody changes it: {} -->"
ADAPTER_FORM = "peft"
"""The format name of an adapter's files, in addition to the checkpoint formats."""
ABOUT = ("Base", "Data", "Training", "Results")
"""Sections that stay valid when the weights are converted."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCES = {"deepseek-ai/DeepSeek-V4-": "mit"}
"""Licences of bases on the Hub, by prefix of their ids."""
_FORMS = {
    ADAPTER_FORM: "An adapter in PEFT's form; the base's weights are not here.",
    "bf16": "bf16 safetensors under the released names.",
    "fp32": "fp32 safetensors under the released names.",
    "released": "FP4 experts and FP8 matrices with E8M0 scales: the layout of the release.",
    "fp8": "FP8 matrices, experts too; scales are powers of two, F32 for experts and E8M0 for the rest.",
    "base": "FP8 matrices with F32 scales: the layout of the released Base.",
    "mixed-bf16": "The base's layout; low-bit matrices that the adapter changed are bf16.",
    "mixed-fp8": "The base's layout; low-bit matrices that the adapter changed are FP8.",
}
_LIMITS = """The limits of the base model apply. A short fine-tune on one dataset can cost abilities that no evaluation
here measured; compare with the base on your own tasks before you use it. These weights were not tested in vLLM or
SGLang when this card was written."""
_ROUNDED = """vLLM and SGLang read the released format. `seektune convert FOLDER served --to released` rounds to it.
That loses small changes; evaluate the result with `seektune eval served --task TASK`. Then:"""
_TASK = "text-generation"
_TAGS = ["deepseek_v4", "seektune"]


def run_card(folder: Path, recipe: Recipe, facts: Sequence[tuple[str, str]], before: Scores, after: Scores) -> str:
    """The card of a run's export.

    Args:
        folder: of the run; its metrics are read.
        recipe: as it ran.
        facts: what the run said of itself, as name and value.
        before: scores of the tasks that ran before training.
        after: of those that ran after it.
    """
    form = ADAPTER_FORM if recipe.lora.targets else recipe.export_format
    # where rows lie on this machine is nobody else's business
    facts = [(name, value.partition(CACHED)[0]) for name, value in facts]
    about = {
        "Base": _base(recipe),
        "Data": " ".join(data.card().text for data in recipe.datasets),
        "Training": f"{_table([*facts, *_figures(folder)])}\n\n{_fold('The whole recipe', dump_recipe(recipe))}",
        "Results": "\n\n".join(map(_results, compare(before, after))),
    }
    trained = "An adapter for DeepSeek-V4" if recipe.lora.targets else "DeepSeek-V4, all weights trained"
    name = folder.resolve().name
    return _card(_front(name, recipe, after), name, f"{trained} with SeekTune {__version__}.", about, form)


def converted_card(source: Path, to: str) -> str | None:
    """The card of a conversion; None if the user edited the source's card, which is then copied unchanged."""
    text = _read(source / CARD)
    if text is not None and not is_ours(text):
        return None
    return _again(text, source.resolve().name, "", to)


def merged_card(base: str, adapter: Path, name: str, to: str, kept: float) -> str:
    """The card of an adapter merged into its base.

    Args:
        base: folder or Hub id.
        adapter: its folder, whose card tells of the training if SeekTune wrote it.
        name: of the result.
        to: how it is stored.
        kept: share of the change that the stored weights keep.
    """
    text = _read(adapter / CARD)
    intro = f"DeepSeek-V4 with an adapter merged in by SeekTune {__version__}; {kept:.1%} of its change is kept."
    if text is not None and is_ours(text):
        return _again(text, name, intro, to, "Measured with the adapter beside the frozen base, before merging.")
    front = ModelCardData(base_model=_hub_id(base), license=_licence(base), pipeline_tag=_TASK, tags=[*_TAGS])
    return _card(front, name, intro, {"Base": f"`{base}`"}, to)


def put_card(folder: Path, text: str) -> bool:
    """Write the card into an export unless the user edited the one there; returns whether it was written.

    Raises:
        OSError: writing failed.
    """
    there = _read(folder / CARD)
    if there is not None and not is_ours(there):
        return False
    write_atomically(folder / CARD, text)
    return True


def is_ours(text: str) -> bool:
    """Whether SeekTune wrote a card and it was not changed since."""
    body, _, _ = text.rstrip("\n").rpartition("\n")
    return text == _marked(body)


def _card(front: ModelCardData, name: str, intro: str, about: Mapping[str, str], form: str) -> str:
    front.library_name = "peft" if form == ADAPTER_FORM else "transformers"
    sections = {**about, "Files": _FORMS[form], "Load": _loading(form, front.base_model), "Limits": _LIMITS}
    written = [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return _marked("\n\n".join([f"---\n{front.to_yaml()}\n---", f"# {name}", *filter(None, [intro]), *written]))


def _again(text: str | None, name: str, intro: str, form: str, remark: str = "") -> str:
    """A card for the same weights in another format, based on SeekTune's card `text` if there is one."""
    if text is None:
        return _card(ModelCardData(pipeline_tag=_TASK, tags=[*_TAGS]), name, intro or "DeepSeek-V4 weights.", {}, form)
    card = ModelCard(text)
    assert isinstance(card.data, ModelCardData)
    opening, *rest = re.split(r"^## ", card.content.split("---\n", 2)[2], flags=re.MULTILINE)
    about = {title: body.strip() for title, _, body in (part.partition("\n") for part in rest) if title in ABOUT}
    if remark and "Results" in about:
        about["Results"] += f"\n\n{remark}"
    _, _, before = opening.strip().partition("\n")
    return _card(card.data, card.data.model_name or name, intro or before.strip(), about, form)


def _front(name: str, recipe: Recipe, after: Scores) -> ModelCardData:
    base = recipe.model.weights
    cards = [data.card() for data in recipe.datasets]
    languages = sorted({card.language for card in cards if card.language is not None})
    return ModelCardData(
        base_model=_hub_id(base),
        license=_licence(base),
        datasets=[card.hub_id for card in cards if card.hub_id is not None] or None,
        language=languages[0] if len(languages) == 1 else languages or None,
        model_name=name,
        eval_results=[each for score in after.values() for each in _measured(score)] or None,
        pipeline_tag=_TASK,
        tags=[*_TAGS, *(["lora"] if recipe.lora.targets else [])],
    )


def _measured(score: TaskScore) -> Iterable[EvalResult]:
    data = score.task.data
    if data is None:  # rows of the user's own
        return
    for name, metric in score.task.metrics.items():
        found = score.metrics[name]
        yield EvalResult(
            task_type=_TASK,
            dataset_type=data.hub_id or data.kind,
            dataset_name=data.name,
            dataset_split="validation",
            metric_type=name,
            metric_name=metric.label,
            metric_value=found.value,
            metric_args={score.task.items: score.n, "interval_95": [found.low, found.high]},
        )


def _base(recipe: Recipe) -> str:
    if recipe.model.weights is not None:
        return f"`{recipe.model.weights}`"
    return f"Random weights of the architecture `{recipe.model.preset or recipe.model.config}`."


def _figures(folder: Path) -> list[tuple[str, str]]:
    """Numbers of the training from the run's metrics files."""
    steps, validations = (
        read_records(folder / name) if (folder / name).is_file() else [] for name in (METRICS, VALIDATION)
    )
    steps = [step for step in steps if "loss" in step]
    if not steps:
        return []
    figures = [
        ("steps done", f"{steps[-1]['step']:,}"),
        ("tokens", f"{steps[-1]['total_tokens']:,}"),
        ("training loss, first and last step", f"{steps[0]['loss']:z.4f}, {steps[-1]['loss']:z.4f}"),
        ("time in steps", f"{sum(step['seconds'] for step in steps):,.0f} s"),
        ("peak memory of a process", f"{max(step['memory_gb'] for step in steps):.1f} GB"),
    ]
    if len(validations) > 1:
        name, first = held_out(validations[0])
        figures.insert(3, (name, f"{first:z.4f} → {held_out(validations[-1])[1]:z.4f}"))
    return figures


def _results(found: TaskComparison) -> str:
    """A table of a task's scores with 95 % intervals."""
    task = found.task
    rows = [f"| {task.title} | before | after | p |", "|---|---|---|---|"]
    changes = found.changes()
    for name, metric in task.metrics.items():
        old, new = ("" if score is None else metric.text(score.metrics[name]) for score in (found.before, found.after))
        p = f"{changes[name].p_value:.2g}" if name in changes else ""
        rows.append(f"| {metric.label} | {old} | {new} | {p} |")
    tested = f" p: {task.test}." if changes else ""
    return "\n".join([*rows, "", f"{found.n:,} {task.about}; 95 % intervals.{tested}"])


def _loading(form: str, base: str | list[str] | None) -> str:
    """How to load the files with each library that supports them."""
    if form == ADAPTER_FORM:
        whole = json.dumps(base if isinstance(base, str) else "BASE")
        return f"""```python
from seektune import DeepseekV4ForCausalLM
from seektune.lora.files import load_adapter

model = DeepseekV4ForCausalLM.from_pretrained({whole}, quantized=True)
load_adapter(model, "FOLDER")
```

With transformers, on bf16 weights: `PeftModel.from_pretrained(model, "FOLDER")`. For vLLM:
`seektune adapter export FOLDER OUT --to vllm`, which refuses what vLLM does not apply adapters to. SGLang needs merged
weights: `seektune merge BASE FOLDER merged --to mixed-fp8` says how much of the change rounding keeps, and refuses too
little."""
    loads = "needs `accelerate` to decode the low-bit weights" if form not in ("bf16", "fp32") else "as it is"
    own = form == "released"
    serving = "vLLM and SGLang read this layout:" if own else _ROUNDED
    theirs = f"""```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER")  # {loads}
```"""
    if form.startswith("mixed"):
        return """`DeepseekV4ForCausalLM.from_pretrained("FOLDER")` of SeekTune, which goes by the dtypes on disk.

The loaders of vLLM and transformers read it too, except FP8 and FP4 experts side by side in vLLM."""
    return f"""```python
from seektune import DeepseekV4ForCausalLM

model = DeepseekV4ForCausalLM.from_pretrained("FOLDER")
```

{theirs}

{serving}

```text
vllm serve {"FOLDER" if own else "served"} --tokenizer-mode deepseek_v4
sglang serve --model-path {"FOLDER" if own else "served"}
```"""


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value.replace('|', '/')} |" for name, value in rows)])


def _fold(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n```yaml\n{text}```\n\n</details>"


def _hub_id(base: str | None) -> str | None:
    return base if base is not None and _HUB_ID.fullmatch(base) and not Path(base).is_dir() else None


def _licence(base: str | None) -> str | None:
    """The licence of the base, if it is known."""
    return next((licence for start, licence in _LICENCES.items() if (_hub_id(base) or "").startswith(start)), None)


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _marked(body: str) -> str:
    return f"{body}\n{MARK.format(hashlib.sha256(body.encode()).hexdigest()[:16])}\n"
