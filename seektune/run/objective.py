"""The objective of a run, from its section of the recipe."""

from seektune.model.distillation import Distillation
from seektune.model.objective import CROSS_ENTROPY, CrossEntropy, Objective
from seektune.model.preference import DPO, IPO, KTO, ORPO, SimPO
from seektune.model.preference_objective import AnswerFeedback, Preference
from seektune.parallel.reference import ReferenceModel
from seektune.parallel.teacher import Teacher
from seektune.train.objectives import (
    DistillConfig,
    DpoConfig,
    IpoConfig,
    KtoConfig,
    ObjectiveConfig,
    OrpoConfig,
    SimpoConfig,
)


def make_objective(section: ObjectiveConfig, reference: ReferenceModel, z_weight: float = 0.0) -> Objective:
    """The objective that a section describes.

    That of distillation has the head of its teacher; cross-entropy has a z-loss of weight `z_weight`.
    """
    match section:
        case DistillConfig(share=share, temperature=temperature, divergence=direction):
            assert isinstance(reference, Teacher)
            return Distillation(reference.head_VE, share, temperature, direction == "reverse")
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
    return CrossEntropy(z_weight) if z_weight else CROSS_ENTROPY
