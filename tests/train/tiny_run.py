"""A DeepSeek-V4 that trains in milliseconds, and made batches for it."""

from pathlib import Path

import torch

from seektune.data.step_data import StepData
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.sequence import IGNORE_INDEX, Batch
from seektune.train.config import CheckpointConfig, GuardConfig, LossConfig, ScheduleConfig
from seektune.train.optim.config import AdamWConfig
from seektune.train.settings import TrainSettings
from seektune.train.step import StepRecord

VOCAB = 64
CONFIG = DeepseekV4Config.preset("tiny").replace(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=3,
    num_hash_layers=1,
    compress_ratios=[0, 4, 128, 0],
    head_dim=16,
    qk_rope_head_dim=8,
    index_head_dim=16,
    q_lora_rank=16,
    o_lora_rank=8,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    sliding_window=8,
)


def small_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> DeepseekV4ForCausalLM:
    torch.manual_seed(seed)
    return DeepseekV4ForCausalLM(CONFIG, dtype=dtype)


def made_batch(seed: int, rows: int = 2, length: int = 12, taught: int = 6, padding: int = 2) -> Batch:
    """Rows of one document each: an untaught prompt, `taught` taught tokens, then padding."""
    dice = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, VOCAB, (rows, length), generator=dice)
    real = torch.arange(length) < length - padding
    labels = torch.where(real & (torch.arange(length) >= length - padding - taught), tokens, IGNORE_INDEX)
    return Batch(torch.where(real, tokens, 0), labels, real.long().expand(rows, length))


class MadeStream:
    """A loader: the data of a step at each call, the same ones from each loader."""

    def __init__(self, micro_batches: int = 2):
        self.drawn, self._micro_batches = 0, micro_batches

    def next_step(self) -> StepData:
        self.drawn += 1
        first = (self.drawn - 1) * self._micro_batches
        return StepData.of([made_batch(first + number) for number in range(self._micro_batches)])

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]


def settings(
    lr: float = 1e-2,
    every: int | None = None,
    validate_every: int | None = None,
    loss: LossConfig | None = None,
    guard: GuardConfig | None = None,
    asynchronous: bool = True,
) -> TrainSettings:
    return TrainSettings(
        optimizer=AdamWConfig(lr=lr),
        schedule=ScheduleConfig(warmup_steps=1),
        loss=LossConfig() if loss is None else loss,
        checkpoint=CheckpointConfig(every=every, asynchronous=asynchronous),
        guard=GuardConfig() if guard is None else guard,
        validate_every=validate_every,
        seed=0,
        record={},
    )


RECORD = StepRecord(
    step=1,
    loss=1.5,
    mtp_loss=0.0,
    balance_loss=0.0,
    grad_norm=0.7,
    lr=1e-3,
    tokens=40,
    taught_tokens=24,
    seconds=30.0,
    tokens_per_s=1200.0,
    memory_gb=2.5,
    loads={0: [10, 30], 1: [20, 20]},
)


class Words:
    """A tokenizer that can only be saved."""

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
