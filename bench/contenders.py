"""The two models that `step.py` compares, with the same weights, and one training step of each."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.train.optim.adamw import AdamW

LR = 1e-4
Step = Callable[[Tensor], None]


class Recomputed(nn.Module):
    """A layer that keeps its input only, and runs again in backward."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Any) -> Any:
        """As the layer."""
        return checkpoint(self.layer, *inputs, use_reentrant=False, preserve_rng_state=False)


def ours(config: DeepseekV4Config, dtype: torch.dtype = torch.float32) -> DeepseekV4ForCausalLM:
    """Random weights."""
    torch.manual_seed(0)
    return DeepseekV4ForCausalLM(config, dtype=dtype)


def recomputed(model: DeepseekV4ForCausalLM) -> DeepseekV4ForCausalLM:
    """The same model with every layer recomputed in backward."""
    model.layers = nn.ModuleList([Recomputed(layer) for layer in model.layers])
    return model


def theirs(model: DeepseekV4ForCausalLM, checkpointing: bool) -> nn.Module:
    """The same weights in transformers, fp32, in training mode."""
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(Path(scratch) / "model", format="fp32")
        other: nn.Module = transformers.DeepseekV4ForCausalLM.from_pretrained(
            Path(scratch) / "model", dtype=torch.float32, attn_implementation="eager"
        )
    if checkpointing:
        other.gradient_checkpointing_enable()
    return other.train()


def our_step(model: DeepseekV4ForCausalLM) -> Step:
    """Forward, backward and our AdamW."""
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)

    def step(tokens: Tensor) -> None:
        model(tokens, labels=tokens, with_logits=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def their_step(model: nn.Module) -> Step:
    """Forward, backward and torch's AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)

    def step(tokens: Tensor) -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(step: Step, tokens: Tensor) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = perf_counter(), process_time()
    step(tokens)
    return perf_counter() - wall, process_time() - cpu
