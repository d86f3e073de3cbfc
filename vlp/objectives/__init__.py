"""The training signals. A new one is a file here and a line in `REGISTRY`."""

from vlp.objectives.classification import TokenClassification
from vlp.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive
from vlp.objectives.cross_modal_distillation import CrossModalDistillation
from vlp.objectives.decoding import Decoding
from vlp.objectives.distillation import SelfDistillation, TextConditionedDistillation
from vlp.objectives.grouped_contrast import GroupedContrastive
from vlp.objectives.interface import Objective
from vlp.objectives.masked_prediction import MaskedPrediction
from vlp.objectives.text_conditioned import TextConditionedSigmoid
from vlp.objectives.view_contrast import ViewContrastive

REGISTRY: dict[str, type[Objective]] = {
    "softmax_contrastive": SoftmaxContrastive,
    "sigmoid_contrastive": SigmoidContrastive,
    "text_conditioned_sigmoid": TextConditionedSigmoid,
    "token_classification": TokenClassification,
    "self_distillation": SelfDistillation,
    "text_conditioned_distillation": TextConditionedDistillation,
    "masked_prediction": MaskedPrediction,
    "view_contrastive": ViewContrastive,
    "cross_modal_distillation": CrossModalDistillation,
    "grouped_contrastive": GroupedContrastive,
    "decoding": Decoding,
}
