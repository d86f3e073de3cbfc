"""Contrast between two views of an image: SimCLR's loss as SLIP adds it to CLIP [docs/method.md 4].

Shapes: B own images, G images of the global batch, E width of the head's output.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from vlp.data.batch import Batch, DataNeeds
from vlp.models.model import VisionLanguageModel
from vlp.objectives.interface import Needs, Objective, Terms, Totals
from vlp.precision import full, without_autocast
from vlp.settings import ObjectiveSettings, Positive


@without_autocast
def view_contrast(own_B2E: Tensor, all_G2E: Tensor, own_B: Tensor, temperature: float) -> Tensor:
    """The sum over own images of -log softmax of their other view, from both views, halved.

    Each view is compared with the other views of all images, and with the same view of all other images.

    Args:
        own_B2E, all_G2E: the head's outputs of own and of all images. Any scale: L2-normalised here.
        own_B: int64, where the own images stand among all.
    """
    own_B2E, all_G2E = normalize(full(own_B2E), dim=-1), normalize(full(all_G2E), dim=-1)
    itself_BG = torch.arange(len(all_G2E), device=own_B.device) == own_B[:, None]
    total = 0.0
    for view in (0, 1):
        other_BG = own_B2E[:, view] @ all_G2E[:, 1 - view].T / temperature
        same_BG = (own_B2E[:, view] @ all_G2E[:, view].T / temperature).masked_fill(itself_BG, float("-inf"))
        total = total + cross_entropy(torch.cat([other_BG, same_BG], dim=1), own_B, reduction="sum")
    return total / 2


class ViewContrastive(Objective):
    """The mean of `view_contrast` over the global batch, on an MLP over the pooled tokens of two global views.

    The norms in the head are LayerNorms, where SLIP has BatchNorms, whose result depends on how a batch is split.
    """

    class Settings(ObjectiveSettings):
        type: Literal["view_contrastive"]
        temperature: float = Field(0.1, gt=0)
        hidden: Positive = 4096
        width: Positive = 256

    def __init__(self, recipe, settings: Settings, model: VisionLanguageModel):
        super().__init__(recipe, settings, model)
        hidden = settings.hidden
        self.head = nn.Sequential(
            *(nn.Linear(model.vision.width, hidden), nn.LayerNorm(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU()),
            nn.Linear(hidden, settings.width),
        )

    @classmethod
    def check(cls, recipe, settings: Settings) -> None:
        if recipe.data.views is None or recipe.data.views.global_count < 2:
            raise ValueError("view_contrastive compares two global views; set data.views.global_count=2")

    @classmethod
    def needs(cls, recipe, settings: Settings) -> Needs:
        return Needs(DataNeeds(view_share=1.0))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"present": torch.tensor(len(batch))}

    def shared(self, features) -> dict[str, Tensor]:
        tokens_B2NW = features.vision["global"][:, :2]
        pooled_BW = features.model.vision.pool(tokens_B2NW.flatten(0, 1))
        return {"view_heads": self.head(pooled_BW).unflatten(0, (-1, 2))}

    def forward(self, features, totals: Totals) -> Terms:
        own, everywhere = features.own["view_heads"], features.everywhere["view_heads"]
        return Terms(view_contrast(own, everywhere, features.place_B, self.settings.temperature) / totals["present"])
