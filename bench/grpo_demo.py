"""Held-out rewards of `make demo-grpo`, and of the same training with the rewards of each rollout shuffled.

Run with `python bench/grpo_demo.py FOLDER` after `make demo-grpo` in the same place, with the run folder of its last
command, whose time it takes again. The control has the demo's recipe, and for its reward a server on this machine that
gives the answers of a request the right rewards in a random order: their mean stays what it is, on held-out rows too.
Writes bench/grpo_demo.json.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

from seektune.io.jsonl import read_records
from seektune.rewards.answer_metrics import Answer
from seektune.rewards.reward import Verifier
from seektune.rewards.sample import RewardSample

HERE = Path(__file__).parent
RESULT = Path(__file__).with_suffix(".json")
RECIPE = HERE.parent / "examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_grpo.yaml"
SHUFFLED = Path("runs/shuffled")


class ShuffledRewards(BaseHTTPRequestHandler):
    """1 for each answer that is equal to its reference and 0 for the others, in another order."""

    order = random.Random(0)

    def do_POST(self) -> None:
        """Answer a request of `seektune.rewards.server`."""
        samples = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["samples"]
        rewards = Verifier("exact_match")([_sample(each) for each in samples])
        self.order.shuffle(rewards)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"rewards": rewards}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def _sample(sent: dict[str, Any]) -> RewardSample:
    answer, reference = (Answer(sent[name]["text"]) for name in ("answer", "reference"))
    return RewardSample(sent["prompt"], answer, reference, sent["truncated"])


def train_shuffled(folder: Path) -> None:
    """Train with the demo's recipe on shuffled rewards."""
    server = HTTPServer(("127.0.0.1", 0), ShuffledRewards)
    Thread(target=server.serve_forever, daemon=True).start()
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["objective"]["reward"] = {"name": "server", "url": f"http://127.0.0.1:{server.server_port}/"}
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / RECIPE.name
        made.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        command = [sys.executable, "-m", "seektune", "train", str(made), f"--run_dir={folder}"]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    server.shutdown()


def curve(folder: Path) -> list[dict[str, float]]:
    """The held-out reward with its 95 % interval, after each measured step."""
    lines = read_records(folder / "validation.jsonl")
    return [{key: line[key] for key in ("step", "reward", "reward_low", "reward_high")} for line in lines]


def main(demo: Path) -> None:
    """Train the control and write both curves."""
    train_shuffled(SHUFFLED)
    found = {"rewards": curve(demo), "shuffled": curve(SHUFFLED)}
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
