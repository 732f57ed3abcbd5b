"""The objective of a run, from its section of the recipe."""

from dataclasses import dataclass

from seektune.model.distillation import Distillation, OnPolicyDistillation, TeacherHead, TopKDistillation
from seektune.model.objective import CROSS_ENTROPY, CrossEntropy, Objective
from seektune.model.policy import Aggregation, PolicyGradient
from seektune.model.preference import DPO, IPO, KTO, ORPO, SimPO
from seektune.model.preference_objective import AnswerFeedback, Preference
from seektune.parallel.reference import ReferenceModel
from seektune.parallel.teacher import Teacher, Teachers
from seektune.train.objectives import (
    DistillConfig,
    DpoConfig,
    IpoConfig,
    KtoConfig,
    ObjectiveConfig,
    OrpoConfig,
    SimpoConfig,
)
from seektune.train.rollout_objectives import GrpoConfig, OpdConfig, RolloutConfig, Variant


@dataclass(frozen=True)
class VariantDefaults:
    """What a variant of GRPO is as published, for the keys that a recipe leaves null."""

    epsilon: float = 0.2
    epsilon_high: float = 0.2
    aggregation: Aggregation = "sequence_mean"
    scale_rewards: bool = True
    resample: int = 0
    sequence_ratio: bool = False
    clips_weight: bool = False


VARIANTS: dict[Variant, VariantDefaults] = {
    "grpo": VariantDefaults(),
    "dr_grpo": VariantDefaults(aggregation="constant", scale_rewards=False),
    "dapo": VariantDefaults(epsilon_high=0.28, aggregation="token_mean", resample=3),
    "gspo": VariantDefaults(epsilon=3e-4, epsilon_high=4e-4, sequence_ratio=True),
    "cispo": VariantDefaults(epsilon_high=4.0, aggregation="token_mean", clips_weight=True),
}
"""By `objective.variant`; docs/grpo.md says where the numbers are from."""


def make_objective(section: ObjectiveConfig, reference: ReferenceModel, z_weight: float = 0.0) -> Objective:
    """The objective that a section describes.

    Those of distillation have the heads of their teachers; cross-entropy has a z-loss of weight `z_weight`.
    """
    match section:
        case DistillConfig(share=share, temperature=temperature, divergence=direction):
            blend = share, temperature, direction == "reverse"
            return (
                Distillation(*blend, reference.head_VE) if isinstance(reference, Teacher) else TopKDistillation(*blend)
            )
        case DpoConfig(beta=beta, label_smoothing=smoothing, length_normalized=normalized, supervised_weight=weight):
            return Preference(DPO(beta, smoothing, normalized), weight)
        case IpoConfig(beta=beta, length_normalized=normalized, supervised_weight=weight):
            return Preference(IPO(beta, normalized), weight)
        case KtoConfig(beta=beta, desirable_weight=desirable, undesirable_weight=undesirable):
            return AnswerFeedback(KTO(beta, desirable, undesirable))
        case OrpoConfig(beta=beta):
            return Preference(ORPO(beta))
        case SimpoConfig(beta=beta, gamma=gamma, label_smoothing=smoothing, supervised_weight=weight):
            return Preference(SimPO(beta, gamma, smoothing), weight)
        case GrpoConfig():
            return _policy_gradient(section)
        case OpdConfig():
            assert isinstance(reference, Teachers)
            return OnPolicyDistillation(_heads(section, reference))
    return CrossEntropy(z_weight) if z_weight else CROSS_ENTROPY


def scales_rewards(section: RolloutConfig) -> bool:
    """Whether advantages are divided by the standard deviation of their group."""
    if not isinstance(section, GrpoConfig):
        return False
    return VARIANTS[section.variant].scale_rewards if section.scale_rewards is None else section.scale_rewards


def resampling_rounds(section: RolloutConfig) -> int:
    """Maximum rounds of new prompts for groups with equal rewards."""
    if not isinstance(section, GrpoConfig):
        return 0
    return VARIANTS[section.variant].resample if section.resample is None else section.resample


def _heads(section: OpdConfig, teachers: Teachers) -> tuple[TeacherHead, ...]:
    pairs = zip(section.labels, teachers.teachers, strict=True)
    return tuple(TeacherHead(label, each.model.config.hidden_size, each.head_VE) for label, each in pairs)


def _policy_gradient(section: GrpoConfig) -> PolicyGradient:
    defaults = VARIANTS[section.variant]
    return PolicyGradient(
        epsilon=defaults.epsilon if section.epsilon is None else section.epsilon,
        epsilon_high=defaults.epsilon_high if section.epsilon_high is None else section.epsilon_high,
        beta=section.beta,
        aggregation=section.aggregation or defaults.aggregation,
        sequence_ratio=defaults.sequence_ratio,
        clips_weight=defaults.clips_weight,
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
    )
