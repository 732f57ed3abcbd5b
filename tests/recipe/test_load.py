"""Loading a file and overrides into a Recipe, one-line errors, and dumping it back."""

import json
from pathlib import Path

import pytest

from seektune.data.datasets.registry import DATASETS
from seektune.model.config import DeepseekV4Config
from seektune.model.variants import PRESETS
from seektune.recipe.load import dump_recipe, load_recipe, read_recipe, schema

SMALLEST = """\
model:
  preset: tiny
batch:
  global_size: 8
  length: 64
steps: 10
"""
*_FIRST, _LAST = map(repr, DATASETS)
KINDS = f"{', '.join(_FIRST)} or {_LAST}"
"""The kinds of data, as an error lists them."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(SMALLEST)
    return path


def complaint(path: Path, *overrides: str) -> str:
    """The one-line error of this recipe, without the folder."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message.removeprefix(f"{path.parent}/")


def save_config(folder: Path, **changes: object) -> Path:
    """Write the tiny preset's config.json with changes."""
    path = folder / "config.json"
    path.write_text(json.dumps(DeepseekV4Config.preset("tiny").to_dict() | changes))
    return path


def with_line(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_smallest_recipe_uses_all_defaults(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert recipe.model.weights is None
    assert recipe.evaluate.limit == 500
    assert (recipe.seed, recipe.run_dir) == (0, None)


def test_scientific_notation_is_a_number(file: Path) -> None:
    with_line(file, "steps: 10", "steps: 10\noptimizer:\n  lr: 1e-5\n")
    assert load_recipe(file).optimizer.lr == 1e-5
    assert load_recipe(file, ["--optimizer.lr=2E-4"]).optimizer.lr == 2e-4


def test_numbers_where_strings_are_expected_keep_their_text(file: Path) -> None:
    recipe = load_recipe(file, ["--run_dir=1e5", "--model.weights=2026", "--data.path=007"])
    assert (recipe.run_dir, recipe.model.weights, str(recipe.data.path)) == ("1e5", "2026", "007")


MISTAKES = {
    "optimizer:\n  lrr: 1": "job.yaml:8: optimizer.lrr is not a key of this section; did you mean optimizer.lr?",
    "optimzer:\n  lr: 1": "job.yaml:7: optimzer is not a key of a recipe; did you mean optimizer?",
    "lr: 1": "job.yaml:7: lr is not a key of a recipe; did you mean optimizer.lr?",
    "loss: {zzz: 1}": "job.yaml:7: loss.zzz is not a key of this section; its keys are mtp_weight,",
    "optimizer:\n  lr: fast": "job.yaml:8: optimizer.lr must be a finite number, not 'fast'",
    "optimizer:\n  lr: .nan": "job.yaml:8: optimizer.lr must be a finite number, not '.nan'",
    "optimizer:\n  lr: 1e400": "job.yaml:8: optimizer.lr must be a finite number, not '1e400'",
    "optimizer:\n  lr: '1e-5'": "job.yaml:8: optimizer.lr must be a finite number, not '1e-5'; write 1e-5 without q",
    "optimizer:\n  lr: -1e-5": "job.yaml:8: optimizer.lr must be greater than 0.0, not -1e-5",
    "optimizer:\n  betas: 0.9": "job.yaml:8: optimizer.betas must be a list, not 0.9; write a list such as [0.9, 0.95]",
    "optimizer:\n  betas: 0.8,0.9": "job.yaml:8: optimizer.betas must be a list, not '0.8,0.9'; write [0.8,0.9]",
    "lora:\n  targets: none": "job.yaml:8: lora.targets must be a list, not 'none'; write [] for none",
    "evaluate:\n  tasks: [{name: samples, prompts: []}]": "job.yaml:8: evaluate.tasks.0.prompts must hold at least 1 ",
    "lora:\n  targets: attn": "job.yaml:8: lora.targets must be a list, not 'attn'; write [attn]",
    "lora:\n  targets: attn, ffn": "job.yaml:8: lora.targets must be a list, not 'attn, ffn'; write [attn, ffn]",
    "optimizer:\n  betas:\n  - 0.9\n  - 2": "job.yaml:10: optimizer.betas.1 must be less than 1.0, not 2",
    "optimizer: 5": "job.yaml:7: optimizer is a section, whose keys are set one by one, not 5",
    "optimizer:": "job.yaml:7: optimizer is a section, whose keys are set one by one, not null",
    "seed: true": "job.yaml:7: seed must be a whole number, not true",
    "seed: 1.5": "job.yaml:7: seed must be a whole number, not 1.5",
    "seed: 1e3": "job.yaml:7: seed must be a whole number, not 1e3; write 1000",
    "seed: '7'": "job.yaml:7: seed must be a whole number, not '7'; write 7 without quotes",
    "lora:\n  dora: 'true'": "job.yaml:8: lora.dora must be true or false, not 'true'; write true without quotes",
    "lora:\n  dora: yes": "job.yaml:8: lora.dora must be true or false, not 'yes'; write true",
    "lora:\n  dora: 0": "job.yaml:8: lora.dora must be true or false, not 0; write false",
    "seed:\t1": "job.yaml:7: YAML takes no tab here; use a space",
    "data:\n\tpath: x": "job.yaml:8: a tab cannot indent YAML; use spaces",
    "evaluate:\n  limit: none": "job.yaml:8: evaluate.limit: write null for none, not none",
    "evaluate:\n  every: None": "job.yaml:8: evaluate.every: write null for none, not None",
    "evaluate:\n  tasks: none": "job.yaml:8: evaluate.tasks: write [] for none, null for the default, not none",
    "data:\n  path: none": "job.yaml:8: data.path: write null for none, not none",
    "run_dir: 'none'": "job.yaml:7: run_dir: write null for none, not none",
    "run_dir: $HOME/runs": "job.yaml:7: run_dir: the path $HOME/runs: $ is not expanded here; write the path out",
    "data:\n  path: ${oc.env:HOME}/x": "job.yaml:8: data.path: the path ${oc.env:HOME}/x: $ is not expanded here",
    "run_dir: ~nobody0/x": "job.yaml:7: run_dir: the path ~nobody0/x: the user nobody0 does not exist",
    "data:\n  path: ~nobody0": "job.yaml:8: data.path: the path ~nobody0: the user nobody0 does not exist",
    "lora:\n  adapter: ~nobody0": "job.yaml:8: lora.adapter: the path ~nobody0: the user nobody0 does not exist",
    "resume: ~nobody0": "job.yaml:7: resume: the path ~nobody0: the user nobody0 does not exist",
    'run_dir: "a\\0b"': "job.yaml:7: run_dir: the path 'a\\x00b' holds a control character",
    "run_dir: ''": "job.yaml:7: run_dir: a path must not be empty",
    "seed: -1": "job.yaml:7: seed must be at least 0, not -1",
    "data:\n  kind: helaswag": f"job.yaml:8: data.kind must be {KINDS}, not 'helaswag'; did you mean hel",
    "data:\n  kind: 5": f"job.yaml:8: data.kind must be {KINDS}, not 5",
    "data:\n  kind: null": f"job.yaml:8: data.kind must be {KINDS}, not null",
    "data:\n  pat: rows": "job.yaml:8: data.pat is not a key of this section; did you mean data.path?",
    "data:\n  zzz: 1": "job.yaml:8: data.zzz is not a key of this section; its keys are kind, label, weight,",
    "data:\n  dataset: hellaswag": "job.yaml:8: data.dataset is now called data.kind",
    "data:\n  overlong: drop": "job.yaml:8: data.overlong is now called batch.overlong",
    "data:\n  path: [a]": "job.yaml:8: data.path must be a string or a path, not a list",
    "data: rows": "job.yaml:7: data is a section, whose keys are set one by one, not 'rows'",
    "evaluate:\n  tasks: [helaswag]": "job.yaml:8: evaluate.tasks.0: unknown task 'helaswag'; the tasks are hellaswag",
    "evaluate:\n  tasks: validation": "job.yaml:8: evaluate.tasks must be a list, not 'validation'; write [validation]",
    "data:\n  on_bad_row: dropp": "job.yaml:8: data.on_bad_row must be 'error' or 'drop', not 'dropp'; did you mean",
    "run_dir: [a]": "job.yaml:7: run_dir must be a string or a path, not a list",
    "run_dir: true": "job.yaml:7: run_dir must be a string or a path, not true",
    'run_dir: "\\uD800"': "job.yaml: a value holds a character that is not Unicode text",
    "optimizer:\n  name: moun": "job.yaml:8: optimizer.name must be 'adamw', 'muon' or 'adamw_8bit', not 'moun'",
    "optimizer:\n  momentum: 0.9": "job.yaml:8: optimizer.momentum is not a key of this section; its keys are",
    "optimizer:\n  name: muon\n  momentm: 0.9": "job.yaml:9: optimizer.momentm is not a key of this section; did",
    "optimizer:\n  groups:\n  - {lr: 1}": "job.yaml:9: optimizer.groups.0.pattern is missing",
    "optimizer:\n  name: muon\nlora:\n  targets: [attn]": "job.yaml:8: optimizer.name muon trains whole matrices; with",
    "schedule:\n  warmup_steps: 10": "job.yaml:8: schedule.warmup_steps (10) must be less than steps (10)",
    "data:\n  path: " + "x" * 5000 + "\n  pack: 1": "job.yaml:9: data.pack is not a key of this section",
}


@pytest.mark.parametrize(("lines", "expected"), MISTAKES.items(), ids=[text[:24] for text in MISTAKES])
def test_errors_name_file_line_and_closest_key(lines: str, expected: str, file: Path) -> None:
    file.write_text(f"{SMALLEST}{lines}\n")
    assert complaint(file).startswith(expected)


def test_unknown_preset_lists_the_valid_ones(file: Path) -> None:
    message = complaint(with_line(file, "tiny", "tinny"))
    assert message == "job.yaml:2: model.preset: unknown preset 'tinny'; the presets are " + ", ".join(sorted(PRESETS))


def test_every_path_expands_the_home_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    keys = ("run_dir", "resume", "data.path", "lora.adapter", "model.weights")
    recipe = load_recipe(file, ["--lora.targets=[attn]", "--model.preset=flash", *(f"--{key}=~/x" for key in keys)])
    found = (recipe.run_dir, recipe.resume, str(recipe.data.path), recipe.lora.adapter, recipe.model.weights)
    assert found == ("/home/me/x",) * len(keys)


def test_missing_keys_are_named(file: Path) -> None:
    assert complaint(with_line(file, "steps: 10\n", "")) == "job.yaml: steps is missing"
    assert complaint(with_line(file, "  length: 64\n", "")) == "job.yaml:3: batch.length is missing"


OVERRIDES = {
    "--optimizer.lrr=1e-4": "--optimizer.lrr=1e-4: optimizer.lrr is not a key of this section; did you mean",
    "--optimizer=5": "--optimizer=5: optimizer is a section",
    "--data.kind=helaswag": f"--data.kind=helaswag: data.kind must be {KINDS}, not 'helaswag'",
    "--evaluate.tasks=[a]": "--evaluate.tasks=[a]: evaluate.tasks.0: unknown task 'a'",
    "--steps=-3": "--steps=-3: steps must be greater than 0, not -3",
    "--batch.global_size=16000000000000": "--batch.global_size=16000000000000: batch.global_size must be at most 10000",
    "--evaluate.limit=none": "--evaluate.limit=none: evaluate.limit: write null for none, not none",
    "--lora.targets=attn": "--lora.targets=attn: lora.targets must be a list, not 'attn'; write [attn]",
    "--model.weights=~nobody0/x": "--model.weights=~nobody0/x: model.weights: the path ~nobody0/x: the user nobody0",
    "--steps=true": "--steps=true: steps must be a whole number, not true",
    "--steps=null": "--steps=null: steps must be a whole number, not null",
    "--run-dir=x": "--run-dir=x: run-dir is not a key of a recipe; did you mean run_dir?",
    "--batch.micro_size=3": "--batch.micro_size=3: batch.micro_size: micro_size 3 must divide global_size 8",
    "--schedule.warmup_steps=99": "--schedule.warmup_steps=99: schedule.warmup_steps (99) must be less than steps (10)",
    "--model.preset=null": "--model.preset=null: model needs an architecture",
    "--model.config=x.json": "--model.config=x.json: model.config and model.preset both define the architecture",
    "--batch.stages=[{from_step: 2, length: 9999999}]": "--batch.stages=[{from_step: 2, length: 9999999}]: "
    "batch.stages.0.length (9999999) exceeds the model's",
    "--optimizer.betas=[]": "--optimizer.betas=[]: optimizer.betas has only 0 values",
    "--optimizer.betas=[0.9]": "--optimizer.betas=[0.9]: optimizer.betas has only 1 value",
    "--batch.length=9999999": "--batch.length=9999999: batch.length (9999999) exceeds the model's 1048576 positions",
    "--run_dir=\udcff": "job.yaml: a value holds a character that is not Unicode text",
}


@pytest.mark.parametrize(("override", "expected"), OVERRIDES.items(), ids=[text[:24] for text in OVERRIDES])
def test_errors_in_overrides_name_the_override(override: str, expected: str, file: Path) -> None:
    assert complaint(file, override).startswith(expected)


def test_failed_check_names_the_override_that_caused_it(file: Path) -> None:
    with_line(file, "  length: 64", "  length: 64\n  micro_size: 4")
    assert complaint(file, "--batch.global_size=6").startswith("--batch.global_size=6: batch.micro_size")


def test_another_preset_drops_the_weights_with_a_note(file: Path) -> None:
    with_line(file, "preset: tiny", "preset: flash\n  weights: deepseek-ai/DeepSeek-V4-Flash")
    loaded = read_recipe(file, ["--model.preset=tiny"])
    assert (loaded.name, loaded.recipe.model.preset, loaded.recipe.model.weights) == ("job", "tiny", None)
    assert len(loaded.notes) == 1
    assert "deepseek-ai/DeepSeek-V4-Flash" in loaded.notes[0]


def test_braces_in_an_override_are_answered_with_the_keys(file: Path) -> None:
    said = r"data.columns must be keys and values, not '{a: b}'; set them one by one: --data.columns.KEY=VALUE"
    with pytest.raises(ValueError, match=said):
        load_recipe(file, ["--data.kind=chat", "--data.columns={a: b}"])


@pytest.mark.parametrize("overrides", [[], ["--model.preset=flash"], ["--model.preset=null"], ["--steps=20"]])
def test_weights_are_kept_if_the_architecture_is_unchanged(overrides: list[str], file: Path) -> None:
    with_line(file, "preset: tiny", "preset: flash\n  weights: deepseek-ai/DeepSeek-V4-Flash")
    loaded = read_recipe(file, overrides)
    assert loaded.recipe.model.weights == "deepseek-ai/DeepSeek-V4-Flash"
    assert loaded.notes == ()


def test_weights_override_is_kept_with_a_preset_override(file: Path, tmp_path: Path) -> None:
    save_config(tmp_path)
    loaded = read_recipe(file, ["--model.preset=tiny", f"--model.weights={tmp_path}"])
    assert (loaded.recipe.model.weights, loaded.notes) == (str(tmp_path), ())


def test_shorter_run_keeps_its_share_of_warmup_with_a_note(file: Path) -> None:
    with_line(file, "steps: 10", "steps: 300\nschedule:\n  warmup_steps: 20")
    assert load_recipe(file, ["--steps=21"]).schedule.warmup_steps == 20
    for steps, warmup in [(20, 1), (3, 0), (1, 0)]:
        loaded = read_recipe(file, [f"--steps={steps}"])
        assert loaded.recipe.schedule.warmup_steps == warmup
        assert len(loaded.notes) == 1
    both = ("--steps=3", "--schedule.warmup_steps=3")
    assert complaint(file, *both).startswith("--schedule.warmup_steps=3: schedule.warmup_steps (3) must be less")


def test_a_shorter_run_leaves_out_stages_that_it_does_not_reach(file: Path) -> None:
    stages = (
        "  stages:\n  - {from_step: 5, length: 128}\n  - {from_step: 9, length: 256}\n  - {from_step: 10, length: 64}\n"
    )
    file.write_text(SMALLEST.replace("steps: 10", f"{stages}steps: 10"))
    loaded = read_recipe(file, ["--steps=8"])
    assert [stage.from_step for stage in loaded.recipe.batch.stages] == [5]
    assert loaded.notes == ("batch.stages: left out 2 stages of the recipe, after --steps=8",)
    assert read_recipe(file, ["--steps=10"]).notes == ()
    late = "batch.stages has a from_step (10) after the last of steps (9)"
    assert late in complaint(file, "--steps=9", "--batch.stages.2.length=32")
    assert late in complaint(with_line(file, "steps: 10", "steps: 9"))


IDLE = {
    "loss:\n  mtp_decay_weight: 0.1\nschedule:\n  name: constant": "loss.mtp_decay_weight needs another schedule.name",
    "logging:\n  noise_scale_every: 5\nobjective:\n  name: dpo": "noise_scale_every is for objective.name",
    "logging:\n  noise_scale_every: 5\ntrain:\n  indexer: kl": "train.indexer frozen; set it to null",
    "data:\n  kind: text\n  path: a\n  fim_spm_share: 0.5": "data: fim_spm_share needs a fim_rate above 0; set it to 0",
    "data:\n  kind: text\n  path: a\n  fim_seed: 1": "data: fim_seed needs a fim_rate above 0; set it to 0",
}


@pytest.mark.parametrize(("lines", "expected"), IDLE.items())
def test_keys_without_effect_are_refused(lines: str, expected: str, file: Path) -> None:
    file.write_text(f"{SMALLEST}{lines}\n")
    assert expected in complaint(file)


def test_a_noise_scale_needs_two_rows(file: Path) -> None:
    words = ["--logging.noise_scale_every=5", "--batch.global_size=1", "--batch.micro_size=1"]
    assert "batch.global_size must be at least 2" in complaint(file, *words)


def test_weights_without_config_or_of_another_model_are_refused(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    assert "config.json" in complaint(file, f"--model.weights={folder}")
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v41"}))
    assert "V4.1 is another architecture" in complaint(file, f"--model.weights={folder}")


def test_weights_that_contradict_the_preset_are_refused(file: Path, tmp_path: Path) -> None:
    save_config(tmp_path, vocab_size=4000)
    message = complaint(file, f"--model.weights={tmp_path}")
    assert "has vocab_size 4000, but model.preset tiny has 4096" in message
    assert message.startswith("--model.weights=")


def test_mtp_weight_defaults_to_0_without_an_mtp_block(file: Path, tmp_path: Path) -> None:
    ratios = list(DeepseekV4Config.preset("tiny").compress_ratios[:-1])
    path = save_config(tmp_path, num_nextn_predict_layers=0, compress_ratios=ratios)
    overrides = ["--model.preset=null", f"--model.config={path}"]
    recipe = load_recipe(file, overrides)
    assert recipe.loss.mtp_weight == 0
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe
    assert "loss.mtp_weight must be 0" in complaint(file, *overrides, "--loss.mtp_weight=0.3")


@pytest.mark.parametrize("setting", ["ep_backend=deep_ep", "ep_message_dtype=fp8", "ep_parts=2"])
def test_messages_between_experts_of_one_process_are_refused(file: Path, setting: str) -> None:
    name, _, value = setting.partition("=")
    assert f"parallel.{name} needs parallel.ep_size above 1" in complaint(file, f"--parallel.{setting}")
    assert (
        str(load_recipe(file, [f"--parallel.{setting}", "--parallel.ep_size=2"]).parallel.model_dump()[name]) == value
    )
    assert load_recipe(file, [f"--parallel.{setting}", "--parallel.layout=auto"]).parallel.layout == "auto"


def test_rounded_inputs_need_quantized_weights(file: Path) -> None:
    serving = "--model.numerics=serving"
    assert "model.numerics serving rounds inputs of quantized weights: set model.quantized" in complaint(file, serving)
    adapted = "--model.quantized=true", "--lora.targets=[attn]", "--loss.bias_update_speed=0"
    assert load_recipe(file, [serving, *adapted]).model.numerics == "serving"


def test_batch_invariance_without_decoding_is_refused(file: Path) -> None:
    expected = "model.batch_invariant makes decoding and training equal, and objective.name cross_entropy decodes"
    assert expected in complaint(file, "--model.batch_invariant=true")


KL = "--train.indexer=kl"
WARMUP = (KL, "--train.indexer_warmup=true")


def test_a_warmup_of_indexers_trains_no_mtp_block(file: Path) -> None:
    longer = "--batch.length=68"
    assert load_recipe(file, [KL, longer]).loss.mtp_weight == 0.1
    assert load_recipe(file, [*WARMUP, longer]).loss.mtp_weight == 0
    assert "a warm-up trains the indexers alone" in complaint(file, *WARMUP, longer, "--loss.mtp_weight=0.1")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--train.indexer_warmup=true"], "train.indexer_warmup needs train.indexer kl"),
        ([KL, "--batch.length=67"], "needs a batch.length of 68 or more, not 67"),
        ([KL, "--batch.length=68", "--lora.targets=[attn]"], "set lora.targets to []"),
        ([*WARMUP, "--batch.length=68", "--loss.balance_weight=1e-4"], "needs loss.balance_weight 0"),
        ([*WARMUP, "--batch.length=68", "--loss.bias_update_speed=0.001"], "needs loss.bias_update_speed 0"),
        ([*WARMUP, "--batch.length=68", "--loss.z_weight=1e-4"], "needs loss.z_weight 0"),
        ([*WARMUP, "--batch.length=68", "--objective.name=dpo"], "needs objective.name cross_entropy"),
    ],
)
def test_settings_that_leave_indexers_nothing_to_learn_are_refused(
    file: Path, overrides: list[str], expected: str
) -> None:
    assert expected in complaint(file, *overrides)


def test_indexers_need_a_csa_layer(file: Path, tmp_path: Path) -> None:
    path = save_config(tmp_path, compress_ratios=[0, 128, 128, 128, 128, 0])
    overrides = ["--model.preset=null", f"--model.config={path}", KL, "--batch.length=68"]
    assert "this architecture has no CSA layer" in complaint(file, *overrides)


@pytest.mark.parametrize("run_dir", ["runs/a", "1e5", "null", "yes", "2026", "a: b # c", "ünï ✓", "'", "a~", "-"])
def test_dumped_recipe_loads_back_equal(run_dir: str, file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(file, ["--optimizer.lr=3e-6", "--optimizer.betas=[0.8, 0.9]", "--evaluate.limit=null"])
    recipe = recipe.model_copy(update={"run_dir": run_dir})
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(again) == recipe


def test_schema_describes_every_key() -> None:
    described = schema()
    sections = [described, *described["$defs"].values()]
    keys = [item for section in sections for item in section["properties"].items()]
    # a section is described at its definition, a constant by its value
    undescribed = [key for key, value in keys if not {"description", "$ref", "const"} & set(value)]
    assert undescribed == []
    assert described["additionalProperties"] is False
    assert "tiny" in json.dumps(described["$defs"]["ModelConfig"]["properties"]["preset"])
