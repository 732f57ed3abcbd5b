"""The models of `mesh_law` frozen, with adapters whose A and B are not zero, on one device and on a mesh."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from seektune.checkpoint.files import TensorFiles
from seektune.checkpoint.formats import FORMATS
from seektune.lora.build import adapter_injector
from seektune.lora.config import LoraConfig
from seektune.lora.frozen_digest import FrozenDigest, frozen_digest
from seektune.lora.initialize import initial_a
from seektune.lora.state import base_state
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.initialize import initialize
from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import make_dims
from seektune.parallel.lora import init_adapters, load_adapter, save_adapter
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.parallelize import parallelize

from .mesh_law import STEPS, Course, Found, Subject, learn, look, whole_model

EVERYTHING = ("attn", "attn.compressor", "ffn.experts", "ffn.shared_experts", "embed", "head", "mtp.0")


@dataclass(frozen=True)
class Adapted:
    """A subject with adapters on it; all else is frozen."""

    subject: Subject
    targets: tuple[str, ...] = EVERYTHING
    quantized: bool = True
    lora: Mapping[str, Any] = field(default_factory=dict)

    def section(self) -> LoraConfig:
        return LoraConfig.model_validate({"targets": self.targets, "rank": 3, "alpha": 6.0, **self.lora})


@dataclass(frozen=True)
class Seen:
    """What a process saw of the frozen weights."""

    before: FrozenDigest
    after: FrozenDigest


def bare(adapted: Adapted, parallel: Mapping[str, Any] | None = None) -> ParallelModel:
    """The same on any mesh, with fresh adapters; on one device where no mesh is named."""
    subject, wanted = adapted.subject, ParallelConfig.model_validate(parallel or {})
    prepare = adapter_injector(
        subject.config,
        adapted.section(),
        subject.loss.mtp_weight > 0,
        FORMATS["released"].kind if adapted.quantized else None,
    )
    whole = whole_model(subject)
    prepare(whole)
    if parallel is None:
        model = ParallelModel.alone(whole)
    else:
        mesh = Mesh.of(make_dims(wanted, dist.get_world_size(), subject.config), torch.device("cpu"))
        model = parallelize(subject.config, mesh, wanted, subject.dtype, "plain", prepare)
        state = whole.state_dict()
        with torch.no_grad():
            for name, piece in model.base_shards().items():
                piece.tensor.copy_(state[name][piece.box])
    init_adapters(model, 0)
    return model


@torch.no_grad()
def made(adapted: Adapted, parallel: Mapping[str, Any] | None = None) -> ParallelModel:
    """As `bare`; every B has values that count, and lengths are no longer those of W."""
    model = bare(adapted, parallel)
    for name, piece in model.adapter_shards().items():
        if name.endswith(".B"):
            piece.tensor.copy_(0.2 * initial_a(name, piece.shape, 1)[piece.box])
        if name.endswith(".magnitude"):
            piece.tensor.mul_(1 + initial_a(name, piece.shape, 2)[piece.box])
    return model


def frozen(model: ParallelModel) -> FrozenDigest:
    return frozen_digest(model.base_shards(), model.mesh.ranks)


def look_adapted(adapted: Adapted, parallel: Mapping[str, Any] | None = None) -> tuple[Found, Seen]:
    """One pass."""
    model = made(adapted, parallel)
    before = frozen(model)
    return look(model, adapted.subject), Seen(before, frozen(model))


def learn_adapted(
    adapted: Adapted, parallel: Mapping[str, Any] | None = None, steps: int = STEPS
) -> tuple[Course, Seen]:
    """Steps on the same rows."""
    model = made(adapted, parallel)
    before = frozen(model)
    return learn(model, adapted.subject, steps), Seen(before, frozen(model))


def read_base(folder: Path, adapted: Adapted, parallel: Mapping[str, Any]) -> tuple[int, int]:
    """Load a released folder into the pieces here, then random weights; bytes that were read, and those that are held.

    Both are compared with a whole model's.
    """
    subject, wanted = adapted.subject, ParallelConfig.model_validate(parallel)
    prepare = adapter_injector(subject.config, adapted.section(), True, FORMATS["released"].kind)
    mesh = Mesh.of(make_dims(wanted, dist.get_world_size(), subject.config), torch.device("cpu"))
    model = parallelize(subject.config, mesh, wanted, subject.dtype, "plain", prepare)
    read = 0
    plain_read = TensorFiles.read

    def counted(files: TensorFiles, name: str, rows: slice | None = None) -> torch.Tensor:
        nonlocal read
        found = plain_read(files, name, rows)
        read += found.nbytes
        return found

    with patch.object(TensorFiles, "read", counted):
        model.load_pretrained(folder)
    same_pieces(model, DeepseekV4ForCausalLM.from_pretrained(folder, quantized=True))
    whole = DeepseekV4ForCausalLM(subject.config, "meta", subject.dtype)
    prepare(whole)
    whole.to_empty(device="cpu")
    for state in (base_state(whole), model.base_shards()):
        torch.manual_seed(3)
        initialize(state, subject.config)
    same_pieces(model, whole)
    return read, sum(piece.tensor.nbytes for piece in model.base_shards().values())


def same_pieces(model: ParallelModel, whole: torch.nn.Module) -> None:
    state = whole.state_dict()
    for name, piece in model.base_shards().items():
        expected = state[name.replace(".weight", "") if name not in state else name]
        assert torch.equal(piece.tensor, expected[piece.box]), name


def bytes_held(adapted: Adapted, parallel: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Dtype and bytes of each frozen tensor's piece."""
    return {name: (str(x.tensor.dtype), x.tensor.nbytes) for name, x in bare(adapted, parallel).base_shards().items()}


def write_and_read(folder: Path, adapted: Adapted, parallel: Mapping[str, Any] | None = None) -> int:
    """Save the adapter as `folder / "here"`, and load `folder / "one"` into the like; the tensors that came back."""
    model, other = made(adapted, parallel), bare(adapted, parallel)
    save_adapter(model, folder / "here", "base", "commit", "recipe")
    load_adapter(other, folder / "one")
    read = other.adapter_shards()
    for name, piece in model.adapter_shards().items():
        assert torch.equal(piece.tensor, read[name].tensor), name
    return len(read)
