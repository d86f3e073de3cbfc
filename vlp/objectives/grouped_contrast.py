"""Contrast of sub-captions with the patches that they group: DreamLIP's local loss [arXiv 2403.17007].

Shapes: B own images, G images of the global batch, K sub-captions per image, P patches, D joint width.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from vlp.data.captions import CaptionKind
from vlp.objectives.contrastive import PairContrastive, softmax_contrast
from vlp.objectives.interface import CaptionSettings, Terms, Totals
from vlp.precision import full, without_autocast
from vlp.settings import Positive


@without_autocast
def group_patches(texts_BKD: Tensor, patches_BPD: Tensor, sparsity: float) -> Tensor:
    """[B, K, D] for each sub-caption the mean of its image's unit-length patches, weighted by how alike they are.

    The weights are the cosines, brought to [0, 1] over the patches; those below `sparsity` become zero, and the rest
    is divided by its sum. float32, unit length.
    """
    patches_BPD = normalize(full(patches_BPD), dim=-1)
    alike_BKP = normalize(full(texts_BKD), dim=-1) @ patches_BPD.mT
    low, high = alike_BKP.amin(-1, keepdim=True), alike_BKP.amax(-1, keepdim=True)
    weights_BKP = 1 - (high - alike_BKP) / (high - low).clamp(min=1e-10)  # exactly 1 at the closest patch
    weights_BKP = torch.where(weights_BKP < sparsity, 0.0, weights_BKP)
    weights_BKP = weights_BKP / weights_BKP.sum(-1, keepdim=True)
    return normalize(weights_BKP @ patches_BPD, dim=-1)


class GroupedContrastive(PairContrastive):
    """CLIP's loss between the sub-captions and what each of them grouped of its own image.

    A sub-caption's negatives are the other ones of the same image (the paper), or of the whole batch (its released
    code). Both compare a vector that one text made with another text, which FLAIR criticises.
    """

    class Settings(CaptionSettings):
        type: Literal["grouped_contrastive"]
        captions: CaptionKind = "sentence"
        captions_per_image: Positive = 8
        negatives: Literal["image", "batch"] = "image"
        sparsity: float | None = Field(None, ge=0, le=1, description="least weight of a patch; null is 1 / patches")

    modules = PairContrastive.modules | {"patch_projection"}

    def grouped(self, features) -> Tensor:
        sparsity = self.settings.sparsity
        patches_BPD = features.patch_embeds
        texts_BKD = features.texts(self.settings.request.name)
        return group_patches(texts_BKD, patches_BPD, 1 / patches_BPD.shape[1] if sparsity is None else sparsity)

    def shared(self, features) -> dict[str, Tensor]:
        if self.settings.negatives == "image":
            return {}
        return {
            "grouped_patches": self.grouped(features),
            self.settings.texts: features.texts(self.settings.request.name),
        }

    def forward(self, features, totals: Totals) -> Terms:
        scale, captions = features.model.logit_scale(), self.settings.captions_per_image
        if self.settings.negatives == "image":
            pairs = zip(self.grouped(features), features.texts(self.settings.request.name), strict=True)
            place_K = torch.arange(captions, device=scale.device)
            loss = sum(softmax_contrast(grouped, texts, grouped, texts, place_K, scale) for grouped, texts in pairs)
        else:
            own, everywhere = features.own, features.everywhere
            place_T = (features.place_B[:, None] * captions + torch.arange(captions, device=scale.device)).flatten()
            both = [
                x.flatten(0, 1)
                for part in (own, everywhere)
                for x in (part["grouped_patches"], part[self.settings.texts])
            ]
            loss = softmax_contrast(*both, place_T, scale)
        return Terms(loss / (totals["present"] * captions), {"logit_scale": scale.detach()})
