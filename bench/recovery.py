"""How much of full tuning adapters recover: a small model on HellaSwag, the same modules tuned by weight and by LoRA.

A tiny model learns from random weights first and is stored as released; from there both go on with the same rows.
Each way gets its best of a few rates. The improvement is that of the loss on held-out rows. All of it is done from
several seeds, each with its own base, adapters and order of rows; the share is of their improvements together.
"""

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from seektune.data.config import BatchConfig
from seektune.data.datasets.dataset import DataCache, EncodeSettings
from seektune.data.datasets.hellaswag import HellaswagConfig
from seektune.data.examples import ExampleList
from seektune.data.loader import Loader, in_order
from seektune.data.mixing import Mixture
from seektune.data.store.split import prepare_dataset
from seektune.data.tokenizer import load_tokenizer
from seektune.evaluate.loss import validation_loss
from seektune.io.cache_dir import cache_dir
from seektune.lora.build import add_adapters
from seektune.lora.config import LoraConfig
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.parallel.model import ParallelModel
from seektune.train.config import LossConfig, ScheduleConfig
from seektune.train.gradient import accumulate_in_fp32
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import AdamWConfig
from seektune.train.schedule import learning_rate
from seektune.train.step import train_step

TARGETS = ("attn", "ffn.experts", "ffn.shared_experts")
RATES = {"full": (1e-3, 2e-3, 4e-3), "lora": (2.5e-3, 5e-3, 1e-2)}
TARGET = 0.9
RESULT = Path(__file__).with_suffix(".json")


class Rows:
    """Batches of HellaSwag rows, the same for every way."""

    def __init__(self, data: Path | None, config: DeepseekV4Config, folder: Path):
        section = HellaswagConfig(path=str(data))
        cache = DataCache(folder, print)
        tokenizer = load_tokenizer(config.vocab_size)
        self.batch = BatchConfig(global_size=16, micro_size=16, length=256)
        stores = prepare_dataset(section, EncodeSettings(config.vocab_size), cache)
        self.train = [stores["train"].example(i) for i in range(4000)]
        self.pad = tokenizer.pad_id
        held_out = [stores["validation"].example(i) for i in range(100)]
        self.held_out = in_order(ExampleList(held_out), self.batch, self.pad)

    def loader(self, seed: int) -> Loader:
        """Rows in the order of a seed."""
        return Loader(Mixture([ExampleList(self.train)], seed), self.batch, self.pad)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=None, help="folder with HellaSwag's rows; fetched if not given")
    parser.add_argument("--base-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    config = DeepseekV4Config.preset("tiny")
    rows = Rows(options.data, config, cache_dir(os.environ))
    found = [from_seed(seed, config, rows, options) for seed in range(options.seeds)]
    gains = {way: sum(seed["before"] - min(seed[way].values()) for seed in found) for way in RATES}
    result = {
        "held-out losses, by seed": [
            {key: shown(value) for key, value in seed.items()} | {"share": round(share_of(seed), 3)} for seed in found
        ],
        "share of the improvement that LoRA recovers": round(gains["lora"] / gains["full"], 3),
        "target": TARGET,
        "targets, rank, steps": [TARGETS, options.rank, options.steps],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def from_seed(seed: int, config: DeepseekV4Config, rows: Rows, options: argparse.Namespace) -> dict[str, Any]:
    """Held-out losses: that of a base of this seed (`before`), and those after each way, by rate."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        torch.manual_seed(seed)
        model = DeepseekV4ForCausalLM(config)
        tune(model, rows, options.base_steps, 2e-3, 2 * seed)
        model.save_pretrained(base, format="released")
        before = validation_loss(DeepseekV4ForCausalLM.from_pretrained(base), rows.held_out)
        print(f"seed {seed}: {before:.4f}", flush=True)
        after = {way: {rate: tuned(way, rate, base, rows, seed, options) for rate in RATES[way]} for way in RATES}
    return {"before": before, **after}


def share_of(seed: dict[str, Any]) -> float:
    """Improvement by adapters over that by weights, each at its best rate."""
    gain = {way: seed["before"] - min(seed[way].values()) for way in RATES}
    return float(gain["lora"] / gain["full"])


def shown(value: Any) -> Any:
    """Numbers as they are written."""
    return {str(rate): round(loss, 4) for rate, loss in value.items()} if isinstance(value, dict) else round(value, 4)


def tuned(way: str, rate: float, base: Path, rows: Rows, seed: int, options: argparse.Namespace) -> float:
    """Held-out loss after tuning the same modules of the base in one way."""
    model = DeepseekV4ForCausalLM.from_pretrained(base, quantized=way == "lora")
    if way == "lora":
        add_adapters(model, LoraConfig(targets=TARGETS, rank=options.rank, alpha=options.rank), mtp=False, seed=seed)
    else:
        named = matching(model, TARGETS)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.removesuffix(".weight") in named and not name.startswith("mtp."))
    tune(model, rows, options.steps, rate, 2 * seed + 1)
    loss = validation_loss(model, rows.held_out)
    print(f"{way} at {rate:g}: {loss:.4f}", flush=True)
    return loss


def tune(model: DeepseekV4ForCausalLM, rows: Rows, steps: int, rate: float, seed: int) -> None:
    """Train on rows of a seed, with a cosine."""
    accumulate_in_fp32(model.parameters())
    optimizer = build_optimizer(model, AdamWConfig(lr=rate, weight_decay=0.0), seed=0)
    loader, schedule = rows.loader(seed), ScheduleConfig(warmup_steps=5)
    step = partial(
        train_step, ParallelModel.alone(model), optimizer, loss=LossConfig(mtp_weight=0.0), max_grad_norm=1.0
    )
    for number in range(1, steps + 1):
        step(loader.next_step(), number, learning_rate(number, steps, rate, schedule))


if __name__ == "__main__":
    main()
