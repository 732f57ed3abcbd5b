"""A model in which every mechanism counts; what it finds and learns on one device, and on a mesh of processes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from seektune.data.step_data import Share, StepData
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.choices import IndexerStage
from seektune.model.config import DeepseekV4Config
from seektune.model.distillation import Distillation, OnPolicyDistillation, TeacherHead, TopKDistillation
from seektune.model.fake_quantized import fake_quantize_modules
from seektune.model.gate import HashGate
from seektune.model.objective import (
    CROSS_ENTROPY,
    CrossEntropy,
    LogprobObjective,
    Objective,
    ObjectiveLoss,
    TokenLogprobs,
)
from seektune.model.policy import PolicyGradient
from seektune.model.preference import DPO, KTO
from seektune.model.preference_objective import AnswerFeedback, Preference
from seektune.model.step_loss import DraftObjective
from seektune.parallel.cached_reference import taught_documents
from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import make_dims
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.parallelize import Prepare, parallelize, unchanged
from seektune.parallel.placement import local, shard_like, shard_of
from seektune.parallel.reference import NO_REFERENCE, ModelReference, ReferenceModel
from seektune.parallel.teacher import Teacher, Teachers
from seektune.parallel.teacher_files import FiledTeacher, TeacherFiles, TopTokens, write_part
from seektune.run.drafter import drafter_trainer
from seektune.run.indexers import indexer_trainer
from seektune.sequence import IGNORE_INDEX, Batch
from seektune.train.config import LossConfig
from seektune.train.gradient import accumulate_in_fp32, gradient_norm
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import AdamWConfig, MuonConfig, OptimizerConfig
from seektune.train.step import StepObjective, make_step_loss, step_count, train_step

from ..conftest import TOY, randomize

CONFIG = DeepseekV4Config.preset("tiny").replace(
    **(TOY | {"num_hidden_layers": 7, "compress_ratios": [0, 4, 128, 4, 128, 4, 128, 0], "num_hash_layers": 2})
)
SHALLOW = DeepseekV4Config.preset("tiny").replace(**TOY)
TEACHER_CONFIG = DeepseekV4Config.preset("tiny").replace(
    **(TOY | {"hidden_size": 48, "num_hidden_layers": 3, "compress_ratios": [0, 4, 128, 0]})
)
LONG = ((600,), (1, 3, 4, 5, 127, 128, 129, 100), (257,), (2,), (300, -20, 130), (1,), (64, 64), (31, 7, 500))
SHORT = ((140,), (1, 3, 4, 5, 50), (129, -4), (2,), (30, -20, 13), (1,), (64, 64), (131, 7))
"""Documents of each row; a negative length is padding."""
LOSS = LossConfig(mtp_weight=0.3, balance_weight=0.05, bias_update_speed=0.001)
STEPS = 3
"""Of a course: from the second on moments and balancing biases count, from the third on earlier moments decay."""
ADAMW = AdamWConfig(lr=1e-3, eps=1e-5)
MUON = MuonConfig(name="muon", lr=3e-4, eps=1e-5)
"""The first layer's streams are equal: what mixes them has no gradient but rounding. AdamW's eps keeps it from becoming
an update; Muon, which has none, must take small steps."""
MUON_STEPS = 2
"""The second has momentum."""
Box = tuple[slice, ...]
Pieces = dict[str, tuple[np.ndarray, Box]]
"""What a process holds of named tensors, and where it belongs."""


class EveryKind(LogprobObjective):
    """Per token the clipped ratio to an older model, per document a function of its sum: neither is linear."""

    part_names = ("clipped", "likely_documents")

    def count(self, batch: Batch) -> float:
        return batch.taught()

    def loss(self, tokens: TokenLogprobs, divisor: Tensor | float) -> ObjectiveLoss:
        ratio = torch.exp(tokens.values_N - tokens.columns["old"])
        clipped = (ratio > 1.2).sum() / divisor
        lengths_U = tokens.document_sums(torch.ones_like(ratio))
        means_U = tokens.document_sums(tokens.values_N * tokens.columns["weights"]) / lengths_U.clamp(min=1)
        likely = tokens.shared(torch.sigmoid(means_U)[lengths_U > 0].sum()) / divisor
        loss = -ratio.clamp(max=1.2).sum() / divisor - 10 * likely
        return ObjectiveLoss(loss, {"clipped": clipped, "likely_documents": likely.detach()})


OBJECTIVES = {
    "cross_entropy": CROSS_ENTROPY,
    "z_loss": CrossEntropy(z_weight=0.05),
    "every_kind": EveryKind(),
    "dpo": Preference(DPO(beta=0.5, length_normalized=True), supervised_weight=0.2),
    "distill": Distillation(share=0.7, temperature=1.5),
    "files": TopKDistillation(share=0.7, temperature=1.5),
    "opd": OnPolicyDistillation(()),
    "gspo": PolicyGradient(0.2, 0.3, beta=0.2, sequence_ratio=True),
    "kto": AnswerFeedback(KTO(beta=0.02, undesirable_weight=0.6)),
}


@dataclass(frozen=True)
class Subject:
    """What is looked at."""

    lengths: tuple[tuple[int, ...], ...] = LONG
    micro_size: int = 2
    config: DeepseekV4Config = CONFIG
    dtype: torch.dtype = torch.float32
    loss: LossConfig = LOSS
    seed: int = 10
    """Of the rows; such that no choice of an expert or entry hangs on rounding."""
    crowded: bool = False
    """Every token goes to the same three experts."""
    weighted: bool = False
    """Tokens have weights and log-probabilities of an older model, and neighbouring documents of a row are pairs; the
    fifth of a row is in none."""
    objective: str = "cross_entropy"
    qat: str = "none"
    """The format whose values the weights are trained to, with rounded activations, as `train.qat`."""
    teacher: bool = False
    """A teacher of another width and depth, on the same mesh; of `opd`, two that share the documents of a row."""
    indexers: IndexerStage = "frozen"
    """What is trained of the indexers."""
    adapters_off: bool = False
    """The reference's log-probabilities are the model's without its adapters, not made ones."""
    anchors: int | None = None
    """Of each micro-batch, if the DSpark stages are trained instead of the model."""

    def drafts(self, data: StepData) -> DraftObjective | None:
        """How drafts are trained."""
        return None if self.anchors is None else DraftObjective(self.anchors, data.micro_batches, seed=7)


@dataclass(frozen=True)
class Found:
    """Of one forward and backward pass over all rows."""

    parts: dict[str, float]
    norm: float
    loads: dict[int, list[int]]
    gradients: Pieces
    scores: np.ndarray
    """Of each token of all rows."""
    recall: dict[int, list[int]] = field(default_factory=dict)
    """Of trained indexers."""


@dataclass(frozen=True)
class Course:
    """Of a few optimizer steps."""

    losses: list[float]
    norms: list[float]
    weights: Pieces


def whole_model(subject: Subject) -> DeepseekV4ForCausalLM:
    numerics = "plain" if subject.qat == "none" else "released"
    drafter = subject.anchors is not None
    model = DeepseekV4ForCausalLM(subject.config, dtype=subject.dtype, numerics=numerics, drafter=drafter)
    randomize(model)
    if subject.anchors is not None:
        drafter_trainer(None)(model)
    for gate in model.gates().values() if subject.crowded else ():
        if isinstance(gate, HashGate):
            gate.tid2eid.copy_(torch.arange(gate.tid2eid.shape[1]))
        else:
            gate.bias[: subject.config.num_experts_per_tok] += 100.0
    form(subject)(model)
    return model


def form(subject: Subject) -> Prepare:
    if subject.indexers != "frozen":
        return indexer_trainer(warmup=subject.indexers == "warmup")
    return unchanged if subject.qat == "none" else partial(fake_quantize_modules, format=subject.qat)


def alone(subject: Subject) -> ParallelModel:
    """The model on one device."""
    return ParallelModel.alone(whole_model(subject))


def spread(parallel: Mapping[str, Any], subject: Subject) -> ParallelModel:
    """In a worker: the same weights, spread."""
    wanted = ParallelConfig.model_validate(parallel)
    mesh = Mesh.of(make_dims(wanted, dist.get_world_size(), subject.config), torch.device("cpu"))
    numerics = "plain" if subject.qat == "none" else "released"
    drafter = subject.anchors is not None
    prepare = drafter_trainer(None) if drafter else form(subject)
    warmup = subject.indexers == "warmup"
    model = parallelize(
        subject.config,
        mesh,
        wanted,
        subject.dtype,
        numerics,
        prepare=prepare,
        drafter=drafter,
        indexers_alone=warmup,
    )
    whole = whole_model(subject).state_dict()
    with torch.no_grad():
        for name, piece in model.shards().items():
            piece.tensor.copy_(whole[name][piece.box])
    return model


def made_rows(subject: Subject) -> list[Batch]:
    """Rows of very different lengths, packed and padded; seven tokens of ten are taught."""
    dice = torch.Generator().manual_seed(subject.seed)
    rows = []
    for each in subject.lengths:
        size = sum(abs(length) for length in each)
        tokens = torch.randint(CONFIG.vocab_size, (size,), generator=dice)
        documents = torch.cat([torch.full((abs(n),), i + 1 if n > 0 else 0) for i, n in enumerate(each)])
        labels = torch.where((torch.rand(size, generator=dice) < 0.7) & (documents > 0), tokens, IGNORE_INDEX)
        others = torch.Generator().manual_seed(len(rows))
        older = -4 - torch.rand(1, size, generator=others)
        pairs = (len(rows) * 10 + (documents + 1) // 2) * torch.where(documents % 2 == 1, 1, -1)
        columns = {
            "weights": torch.rand(1, size, generator=others),
            "old": older,
            "reference": older,
            "rollout_logprobs": older + 0.1 * torch.rand(1, size, generator=others),
            "advantages": torch.where(documents % 2 == 1, 1.0, -0.5)[None],
            "loss_mask": (documents != 3).float()[None],
            "teacher_number": (documents % 2).float()[None],
            "pairs": torch.where((documents > 0) & (documents != 5), pairs, 0)[None],
        }
        rows.append(Batch(tokens[None], labels[None], documents[None], columns if subject.weighted else {}))
    return rows


def together(rows: Sequence[Batch]) -> Batch:
    longest = max(row.tokens.shape[1] for row in rows)
    return Batch.cat([row.padded(length=longest) for row in rows])


def batches(subject: Subject) -> list[Batch]:
    """The rows as micro-batches."""
    rows, size = made_rows(subject), subject.micro_size
    return [together(rows[i : i + size]) for i in range(0, len(rows), size)]


def own_data(model: ParallelModel, subject: Subject) -> StepData:
    """The micro-batches of this process."""
    return StepData.of(batches(subject), Share(model.mesh.coords.dp, model.mesh.dims.data_size))


def taught_by(teacher: ParallelModel, subject: Subject) -> tuple[Teacher, Objective]:
    """A teacher and its objective."""
    head_VE = whole_model(subject).head.values().detach()
    return Teacher(teacher, head_VE), replace(OBJECTIVES["distill"], head_VE=head_VE)


def read_from_files(teacher: ParallelModel, subject: Subject, own: Sequence[Batch]) -> list[Batch]:
    """This process's micro-batches with the likeliest tokens of a teacher, which each process has written."""
    rows = together(made_rows(subject))
    everything = {each.digest for each in taught_documents(rows)}
    with TemporaryDirectory() as folder:
        write_part(Path(folder), 0, TopTokens.of(rows, teacher.top_tokens(rows, 5, 1.5), everything))
        reference = FiledTeacher(TeacherFiles(Path(folder)), 5)
        return [reference.own(batch) for batch in own]


def taught_by_two(made: Callable[[Subject], ParallelModel], subject: Subject) -> tuple[Teachers, Objective]:
    """Teachers of two widths and depths, made as the model is, and their objective."""
    subjects = [replace(subject, config=config) for config in (TEACHER_CONFIG, SHALLOW)]
    teachers = [Teacher(made(each), whole_model(each).head.values().detach()) for each in subjects]
    heads = [
        TeacherHead(name, each.model.config.hidden_size, each.head_VE)
        for name, each in zip("ab", teachers, strict=True)
    ]
    return Teachers(teachers), OnPolicyDistillation(tuple(heads))


def look(model: ParallelModel, subject: Subject, parallel: Mapping[str, Any] | None = None) -> Found:
    """One pass; no gradient is left behind. A teacher is spread as `parallel` says, or alone."""
    data = own_data(model, subject)
    objective = OBJECTIVES[subject.objective]
    reference: ReferenceModel = ModelReference(model) if subject.adapters_off else NO_REFERENCE
    if subject.objective == "opd":
        reference, objective = taught_by_two(alone if parallel is None else partial(spread, parallel), subject)
    elif subject.teacher:
        other = replace(subject, config=TEACHER_CONFIG)
        teacher = alone(other) if parallel is None else spread(parallel, other)
        if subject.objective == "files":
            data = replace(data, batches=read_from_files(teacher, other, data.batches))
        else:
            reference, objective = taught_by(teacher, other)
    has_mtp = model.config.mtp_layers > 0
    count = step_count(objective, data, model.mesh)
    target = StepObjective(objective, subject.drafts(data), subject.indexers)
    wanted = make_step_loss(data, subject.loss, has_mtp, target, count)
    accumulate_in_fp32(model.parameters())
    outcome = model.train([reference.own(batch) for batch in data.batches], wanted, lambda phase: None)
    norm = gradient_norm(model.named_parameters(), model.mesh)
    gradients = {
        name: portable(shard_like(name, parameter, local(parameter.grad), model.mesh))
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    for parameter in model.parameters():
        parameter.grad = None
    scores = model.score(together(made_rows(subject))).losses_BT.numpy()
    return Found(outcome.totals(), norm, listed(outcome.loads), gradients, scores, listed(outcome.recall))


@cache
def look_alone(subject: Subject) -> Found:
    """What one device finds, the same for all layouts."""
    return look(alone(subject), subject)


def learn(model: ParallelModel, subject: Subject, steps: int = STEPS, wanted: OptimizerConfig = ADAMW) -> Course:
    """Steps on the same rows, as the trainer takes them."""
    data = own_data(model, subject)
    accumulate_in_fp32(model.parameters())
    moving = build_optimizer(model, wanted, 0, model.mesh)
    target = StepObjective(drafts=subject.drafts(data))
    done = [
        train_step(model, moving, data, step, wanted.lr, subject.loss, wanted.max_grad_norm, target=target)
        for step in range(1, steps + 1)
    ]
    weights = {name: portable(shard_of(name, p, model.mesh)) for name, p in model.named_parameters()}
    return Course([each.loss for each in done], [each.grad_norm for each in done], weights)


def listed(loads: Mapping[int, Tensor]) -> dict[int, list[int]]:
    return {layer: load_E.tolist() for layer, load_E in loads.items()}


def portable(piece: Any) -> tuple[np.ndarray, Box]:
    return piece.tensor.float().clone().numpy(), piece.box


def look_spread(parallel: Mapping[str, Any], subject: Subject) -> Found:
    return look(spread(parallel, subject), subject, parallel)


def draft(model: ParallelModel, subject: Subject) -> tuple[Found, Course]:
    """One pass of the stages, and steps of them."""
    return look(model, subject), learn(model, subject)


def draft_spread(parallel: Mapping[str, Any], subject: Subject) -> tuple[Found, Course]:
    return draft(spread(parallel, subject), subject)


def learn_twice(model: ParallelModel, subject: Subject, muon: bool = True) -> dict[str, Course]:
    """By optimizer, from the same weights; with AdamW and, if asked for, with Muon."""
    before = {name: piece.tensor.clone() for name, piece in model.shards().items()}
    found = {}
    for wanted, steps in ((ADAMW, STEPS), *[(MUON, MUON_STEPS)] * muon):
        with torch.no_grad():
            for name, piece in model.shards().items():
                piece.tensor.copy_(before[name])
        found[wanted.name] = learn(model, subject, steps, wanted)
    return found


def learn_spread(parallel: Mapping[str, Any], subject: Subject, muon: bool) -> dict[str, Course]:
    return learn_twice(spread(parallel, subject), subject, muon)


def assembled(pieces: Sequence[Pieces], whole: Pieces) -> dict[str, np.ndarray]:
    """Whole tensors from what all processes hold; where several hold the same, they must agree to the last bit."""
    found = {name: np.full(array.shape, np.nan, dtype=np.float32) for name, (array, _) in whole.items()}
    for held in pieces:
        for name, (array, box) in held.items():
            before = found[name][box]
            assert np.isnan(before).all() or np.array_equal(before, array), f"copies of {name} differ"
            found[name][box] = array
    return found


def errors(pieces: Sequence[Pieces], whole: Pieces) -> dict[str, float]:
    """The distance of each tensor from the one device's, by that one's norm.

    A router's `scale`, 1 or 3 numbers, is measured by the norm of its `base` too: its gradient is a sum over all tokens
    of terms like those of `base`, and may be no more than the rounding of them.
    """
    found = assembled(pieces, whole)
    return {name: float(np.linalg.norm(found[name] - array)) / size(name, whole) for name, (array, _) in whole.items()}


def size(name: str, whole: Pieces) -> float:
    names = {name, name.removesuffix("scale") + "base"} & whole.keys() if name.endswith(".scale") else {name}
    return max(float(np.linalg.norm([np.linalg.norm(whole[each][0]) for each in names])), 1e-12)
