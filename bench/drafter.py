"""What a tune does to a DSpark drafter, and what training the drafter does then: tokens per step on held-out prompts.

A `tiny-0731` model learns HellaSwag from random weights and gets new stages; the drafter is trained; the model is tuned
further at a high rate, which the drafter does not follow; the drafter is trained again. Each run measures the drafter
before and after, as any run of one process does. About ten minutes on two cores; the result is bench/drafter.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from seektune.checkpoint.convert import convert
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config

RECIPE = "examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_hellaswag.yaml"
RESULT = Path(__file__).with_suffix(".json")
TRAIN_DRAFTER = ["--train.drafter=true", "--train.drafter_answers=512", "--optimizer.lr=3e-3", "--steps=120"]


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """One training run; its scores of the drafter."""
    command = [sys.executable, "-m", "seektune", "train", RECIPE, f"--run_dir={folder}", *overrides]
    subprocess.run(command, check=True)
    return json.loads((folder / "evaluation.json").read_text()).get("drafter", {})


def with_stages(weights: Path, folder: Path) -> None:
    """A checkpoint in the released format: trained weights, and stages as they are initialized."""
    config = DeepseekV4Config.preset("tiny-0731")
    torch.manual_seed(0)
    model = DeepseekV4ForCausalLM(config, drafter=True)
    trained = DeepseekV4ForCausalLM.from_pretrained(weights)
    model.load_state_dict(model.state_dict() | trained.state_dict())
    model.save_pretrained(folder, format="released")


def main() -> None:
    """Run all four trainings and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of HellaSwag; downloaded if not given")
    options = parser.parse_args()
    shared = ["--loss.mtp_weight=0", *([f"--data.path={options.data}"] if options.data else [])]
    measured = ["--evaluate.tasks=[drafter]", "--model.preset=null"]
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        run(work / "0", *shared, "--model.preset=tiny-0731", "--evaluate.tasks=[validation]")
        with_stages(work / "0" / "model", work / "base")
        first = run(work / "1", *shared, *measured, *TRAIN_DRAFTER, f"--model.weights={work / 'base'}")
        convert(work / "1" / "model", work / "drafting", "released", original=work / "base")
        tune = ["--optimizer.lr=3e-3", "--seed=7"]
        tuned = run(work / "2", *shared, *measured, *tune, f"--model.weights={work / 'drafting'}")
        tuned_weights = f"--model.weights={work / '2' / 'model'}"
        again = run(work / "3", *shared, *measured, *TRAIN_DRAFTER, tuned_weights)
    runs = {"training of a new drafter": first, "tune of the model": tuned, "training of the drafter again": again}
    found = {name: {when: scores[when] for when in ("before", "after")} for name, scores in runs.items()}
    RESULT.write_text(json.dumps({"threads": torch.get_num_threads(), "runs": found}, indent=2) + "\n")
    for name, scores in found.items():
        lengths = [scores[when]["accepted_length"] for when in ("before", "after")]
        print(name + ":", " → ".join("{value:.2f} ({low:.2f} to {high:.2f})".format(**each) for each in lengths))


if __name__ == "__main__":
    main()
