"""Prediction of masked patches: what the EMA teacher says of patches that the student does not see, as SigLIP 2 and
TIPS have it [docs/method.md 4].

Shapes: b images with views, M masked patches, W width of the vision tower, C prototypes.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from vlp.data.batch import DataNeeds
from vlp.models.model import VisionLanguageModel
from vlp.objectives.distillation import DistillationSettings, PrototypeHead, PrototypeObjective, mean_entropy
from vlp.objectives.drawing import draw_patches
from vlp.objectives.interface import Needs, Terms, Totals
from vlp.precision import full, without_autocast
from vlp.settings import Share


@without_autocast
def masked_loss(student_bMC: Tensor, targets_bMC: Tensor, temperature: float) -> Tensor:
    """Sum over images of the mean over masked patches of H(q, softmax(z / tau_s)), q the teacher's targets."""
    student_bMC = full(student_bMC) / temperature
    loss_bM = student_bMC.logsumexp(-1) - (targets_bMC * student_bMC).sum(-1)
    return loss_bM.sum() / max(1, loss_bM.shape[1])


class MaskedPrediction(PrototypeObjective):
    """The mean of `masked_loss` over the images with views, on a head of its own for patch tokens.

    The first global view is masked; the teacher sees it whole.
    """

    class Settings(DistillationSettings):
        type: Literal["masked_prediction"]
        prototypes: Annotated[int, Field(ge=2)] = 8192
        masked: Share = Field(0.5, description="share of the patches that are masked")

    def __init__(self, recipe, settings: Settings, model: VisionLanguageModel):
        super().__init__(recipe, settings, model)
        self.patches = PrototypeHead(model.vision.width, settings.prototypes)

    @classmethod
    def check(cls, recipe, settings: Settings) -> None:
        if recipe.data.views is None:
            raise ValueError("masked prediction reads a global view; set data.views.global_count")

    @classmethod
    def needs(cls, recipe, settings: Settings) -> Needs:
        return Needs(
            DataNeeds(view_share=settings.share), modules=frozenset({"mask_token"}), teacher_modules=frozenset()
        )

    def forward(self, features, totals: Totals) -> Terms:
        vision, batch = features.model.vision, features.batch
        patches = vision.patches_of(batch.global_views_bG3HW)
        places_bM = draw_patches(
            *(features.seed, features.step, batch.index_B[batch.view_rows_b], patches),
            max(1, round(patches * self.settings.masked)),
        )
        teacher_bMW = take(vision.patches(features.teacher_views[0][:, 0]), places_bM)
        student_bMW = take(vision.patches(features.masked_tokens(places_bM)), places_bM)
        targets_bMC, sum_C = self.patches.targets(teacher_bMW, self.settings.teacher_temperature)
        loss = masked_loss(self.patches.student(student_bMW), targets_bMC, self.settings.student_temperature)
        return Terms(
            loss / totals["present"].clamp(min=1),
            {"teacher_entropy": mean_entropy(targets_bMC)},
            {"patches": sum_C, "views": torch.tensor(places_bM.numel())},
        )


def take(patches_bPW: Tensor, places_bM: Tensor) -> Tensor:
    """[b, M, W] the patches at these places."""
    return patches_bPW.gather(1, places_bM[..., None].expand(-1, -1, patches_bPW.shape[-1]))
