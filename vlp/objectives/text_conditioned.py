"""Sigmoid contrast on text-conditioned and text-agnostic image embeddings: FLAIR, GoldiCLIP.

Shapes: B own images, G images of the global batch, K captions per image, D joint width, N captions that one image
meets (G + K - 1).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils.checkpoint import checkpoint

from vlp.data.captions import CaptionKind
from vlp.models.model import VisionLanguageModel
from vlp.objectives.contrastive import PairContrastive, SigmoidContrastive, agnostic_sum, sigmoid_contrast
from vlp.objectives.drawing import draw_caption
from vlp.objectives.interface import CaptionSettings, Terms, Totals
from vlp.precision import full
from vlp.settings import Positive


def meet_captions(images_B: Tensor, all_G: Tensor, captions: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Which captions each own image meets: its own K, and one drawn caption of every other image.

    Args:
        images_B, all_G: int64 numbers of the own images and of all images of the global batch.

    Returns:
        int64 [B, N] places in the [G * K] captions of the global batch (image by image in the order of `all_G`),
        and bool [B, N], true at the image's own captions.
    """
    own_BG = images_B[:, None] == all_G[None, :]
    drawn_BG = draw_caption(seed, step, images_B, all_G, captions).masked_fill(own_BG, 0)
    first_G = torch.arange(len(all_G), device=all_G.device) * captions
    others_BG = first_G + drawn_BG  # its own first caption stands where the image itself is
    rest_BK = first_G[own_BG.int().argmax(dim=1)][:, None] + torch.arange(1, captions, device=all_G.device)
    return torch.cat([others_BG, rest_BK], dim=1), torch.cat(
        [own_BG, torch.ones_like(rest_BK, dtype=torch.bool)], dim=1
    )


class TextConditionedSigmoid(PairContrastive):
    """L_tcs + L_mps [docs/method.md 2, Losses; 3, Contrastive; 6].

    L_tcs = -sum_ij log sigmoid(y_ij (s cos(v_tc(i|t_j), t_j) + b)) / (B + K - 1), over the captions j that i meets.
    L_mps = -sum_ij log sigmoid(y_ij (s cos(v_g(i), t_j) + b)) / (B K), over all captions j.
    B counts the images of the global batch. GoldiCLIP adds the two terms, FLAIR takes their mean (`combine`).
    """

    class Settings(CaptionSettings):
        type: Literal["text_conditioned_sigmoid"]
        captions: CaptionKind = "diverse"
        captions_per_image: Positive = 8
        combine: Literal["sum", "mean"] = "sum"

    modules = SigmoidContrastive.modules | {"patch_projection", "pooling"}

    def __init__(self, recipe, settings: Settings, model: VisionLanguageModel):
        super().__init__(recipe, settings, model)
        self.chunk = recipe.model.pooling.chunk

    @classmethod
    def check(cls, recipe, settings: Settings) -> None:
        if recipe.model.pooling is None:
            raise ValueError("text-conditioned contrast reads model.pooling, which is null; remove that line")

    def forward(self, features, totals: Totals) -> Terms:
        model, captions = features.model, self.settings.captions_per_image
        scale, bias = model.logit_scale(), model.logit_bias()
        texts_TD = features.everywhere[self.settings.texts].flatten(0, 1)
        met_BN, own_BN = meet_captions(
            features.batch.index_B, features.everywhere["index"], captions, features.seed, features.step
        )

        keys_values = model.pooling.keys_values(features.patch_embeds)
        queries_TD = model.pooling.queries(texts_TD)

        def conditioned(met_BN: Tensor, own_BN: Tensor) -> Tensor:
            images_BND = model.pooling.output(model.pooling.attend(queries_TD[met_BN], keys_values))
            cosines_BN = cosine_similarity(full(images_BND), full(texts_TD)[met_BN], dim=-1)
            return sigmoid_contrast(cosines_BN, own_BN, scale, bias)

        if met_BN.shape[1] <= self.chunk:
            conditioned_sum = conditioned(met_BN, own_BN)
        else:  # [B, N, D] would not fit: in chunks of N, recomputed in backward
            chunks = zip(met_BN.split(self.chunk, dim=1), own_BN.split(self.chunk, dim=1), strict=True)
            conditioned_sum = sum(checkpoint(conditioned, *chunk, use_reentrant=False) for chunk in chunks)

        images = totals["present"]
        conditioned_loss = conditioned_sum / (images + captions - 1)
        agnostic_loss = agnostic_sum(features, self.settings.texts, scale, bias) / (images * captions)
        loss = conditioned_loss + agnostic_loss
        return Terms(
            loss / 2 if self.settings.combine == "mean" else loss,
            {"logit_scale": scale.detach(), "logit_bias": bias.detach()},
        )
