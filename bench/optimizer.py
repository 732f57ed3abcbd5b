"""What a step of Muon takes, against the matrix products that it must do; of AdamW for comparison.

`products` does the three products of each of the ten iterations on whole matrices of the model's shapes, and nothing
else; `muon` is an optimizer step with momentum, norms, decay, and AdamW for the other parameters. Seconds are CPU time,
the best of rounds in which all take turns, as others may be busy.
"""

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
from torch import Tensor

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.parallel.matrix_exchange import stack_of
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import AdamWConfig, MuonConfig
from seektune.train.optim.muon import MATRICES
from seektune.train.optim.newton_schulz import HYBRID

ROUNDS = 3
HERE = Path(__file__).parent
FEW = {"num_hidden_layers": 2, "compress_ratios": [0, 4], "n_routed_experts": 4, "num_experts_per_tok": 2}
CASES = {"model": {}, "wide": FEW}
"""Configs here, and what is changed in them to take minutes."""
RESULT = Path(__file__).with_suffix(".json")
Step = Callable[[], object]


def main() -> None:
    """Measure, print and write the result."""
    torch.set_num_threads(1)
    cases = []
    for name, changes in CASES.items():
        config = DeepseekV4Config.from_pretrained(HERE / f"{name}.json").replace(**changes)
        for dtype in (torch.float32, torch.bfloat16):
            cases.append({"model": name, "dtype": str(dtype).removeprefix("torch."), **case(config, dtype)})
            print(json.dumps(cases[-1]), flush=True)
    machine = {"system": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    worst = max(each["ratio"] for each in cases)
    RESULT.write_text(json.dumps({"machine": machine, "worst ratio": worst, "cases": cases}, indent=1) + "\n")
    print(f"worst ratio {worst}, written to {RESULT}")


def case(config: DeepseekV4Config, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of a step of each kind."""
    torch.manual_seed(0)
    model = DeepseekV4ForCausalLM(config, dtype=dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    muon = build_optimizer(model, MuonConfig(name="muon"), seed=0)
    adamw = build_optimizer(model, AdamWConfig(), seed=0)
    stacks = [stack_of(p, group[MATRICES]) for group in muon.param_groups if group[MATRICES] for p in group["params"]]
    matrices = [random_matrices(stack.count, stack.rows, stack.columns, dtype) for stack in stacks]
    steps: dict[str, Step] = {"products": lambda: products(matrices), "muon": muon.step, "adamw": adamw.step}
    seconds: dict[str, float] = {}
    for _ in range(ROUNDS + 1):  # the first allocates state and counts as any other
        for name, step in steps.items():
            seconds[name] = min(seconds.get(name, float("inf")), timed(step))
    found: dict[str, float] = {name: round(each, 4) for name, each in seconds.items()}
    parameters = sum(parameter.numel() for parameter in trained)
    return {"parameters": parameters, **found, "ratio": round(seconds["muon"] / seconds["products"], 3)}


def random_matrices(count: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Wide ones, of norm 1."""
    short, long = sorted((rows, columns))
    x = torch.randn(count, short, long)
    return (x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)).to(dtype)


def products(matrices: list[Tensor]) -> None:
    """The products of all iterations."""
    for x in matrices:
        for _ in HYBRID:
            gram = torch.bmm(x, x.mT)
            torch.bmm(gram, gram)
            torch.bmm(gram, x)


def timed(step: Step) -> float:
    """CPU seconds."""
    began = process_time()
    step()
    return process_time() - began


if __name__ == "__main__":
    main()
