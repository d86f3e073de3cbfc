"""The training signals. A new one is a file here and a line in `REGISTRY`."""

from vlp.objectives.classification import TokenClassification
from vlp.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive
from vlp.objectives.decoding import Decoding
from vlp.objectives.distillation import SelfDistillation, TextConditionedDistillation
from vlp.objectives.interface import Objective
from vlp.objectives.text_conditioned import TextConditionedSigmoid

REGISTRY: dict[str, type[Objective]] = {
    "softmax_contrastive": SoftmaxContrastive,
    "sigmoid_contrastive": SigmoidContrastive,
    "text_conditioned_sigmoid": TextConditionedSigmoid,
    "token_classification": TokenClassification,
    "self_distillation": SelfDistillation,
    "text_conditioned_distillation": TextConditionedDistillation,
    "decoding": Decoding,
}
