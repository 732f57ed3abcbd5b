"""What FP8 messages between experts lose: losses of the tiny model with and without them, from the same weights.

Tokens are rounded on one device as `parallel.ep_message_dtype: fp8` rounds them on their way (a test compares both).
Writes expert_messages.json beside this file; about a minute on one core.
"""

import gzip
import json
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from seektune.data.step_data import StepData
from seektune.kernels import fake_quantize_fp8
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.gate import Routing
from seektune.model.token_dispatch import Finish, LocalDispatch, RunExperts
from seektune.parallel.messages import GROUP
from seektune.parallel.model import ParallelModel
from seektune.sequence import Batch
from seektune.train.config import LossConfig
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import AdamWConfig
from seektune.train.step import train_step

STEPS, ROWS, LENGTH = 60, 4, 128
LAST = 10
"""Steps at the end whose losses are averaged."""


class RoundedTokens(LocalDispatch):
    """Experts get tokens as FP8 messages bring them."""

    def start(self, x_ND: Tensor, routing: Routing, experts: RunExperts) -> Finish:
        """As `LocalDispatch`."""
        return super().start(fake_quantize_fp8(x_ND, GROUP), routing, experts)


def losses(rounded: bool, text: Tensor) -> list[float]:
    """Train on the text, byte by byte."""
    torch.manual_seed(0)
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"))
    if rounded:
        for block in model.blocks():
            block.ffn.dispatch = RoundedTokens()
    optimizer = build_optimizer(model, AdamWConfig(lr=2e-3), seed=0)
    alone = ParallelModel.alone(model)
    found = []
    for step in range(STEPS):
        ids = text[step * ROWS * LENGTH :][: ROWS * LENGTH].view(ROWS, LENGTH)
        data = StepData.of([Batch(ids, ids, torch.ones_like(ids))])
        found.append(train_step(alone, optimizer, data, step, 2e-3, LossConfig(), 1.0).loss)
    return found


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    file = next(each for each in resources.files("seektune.data.datasets").iterdir() if each.name.endswith(".txt.gz"))
    text = torch.tensor(list(gzip.decompress(file.read_bytes())[: STEPS * ROWS * LENGTH]))
    exact = losses(False, text)
    rounded = losses(True, text)
    differences = [abs(a - b) for a, b in zip(exact, rounded, strict=True)]
    found = {
        "steps": STEPS,
        "tokens_of_a_step": ROWS * LENGTH,
        "first_loss": [round(exact[0], 5), round(rounded[0], 5)],
        "mean_of_last_losses": [round(sum(each[-LAST:]) / LAST, 4) for each in (exact, rounded)],
        "largest_difference": round(max(differences), 4),
    }
    print(json.dumps(found, indent=1))
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
