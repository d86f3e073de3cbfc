"""Sigmoid contrast on text-conditioned and text-agnostic image embeddings: FLAIR, GoldiCLIP.

Shapes: B own images, G images of the global batch, K captions per image, D joint width, N captions that one image
meets (G + K - 1).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, logsigmoid, normalize
from torch.utils.checkpoint import checkpoint

from vlp.data.batch import Batch, DataNeeds
from vlp.data.captions import CaptionKind
from vlp.models.model import VisionLanguageModel
from vlp.objectives.drawing import draw_caption
from vlp.objectives.interface import CaptionSettings, Needs, Objective, Terms, Totals
from vlp.precision import full, without_autocast
from vlp.settings import Positive


@without_autocast
def all_cosines(images_BD: Tensor, texts_TD: Tensor) -> Tensor:
    """[B, T] cosine of every image with every text, float32."""
    return normalize(full(images_BD), dim=-1) @ normalize(full(texts_TD), dim=-1).T


def sigmoid_contrast(cosines: Tensor, positive: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """-sum log sigmoid(y * (s * cos + b)), y = 1 where `positive`, else -1. Any shape; a float32 scalar."""
    logits = scale * full(cosines) + bias
    return -logsigmoid(torch.where(positive, logits, -logits)).sum()


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


class TextConditionedSigmoid(Objective):
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

    splits_batch = False

    def __init__(self, recipe, settings: Settings, model: VisionLanguageModel):
        super().__init__(recipe, settings, model)
        self.chunk = recipe.model.pooling.chunk

    @classmethod
    def check(cls, recipe, settings: Settings) -> None:
        if recipe.model.pooling is None:
            raise ValueError("text-conditioned contrast reads model.pooling, which is null; remove that line")

    @classmethod
    def needs(cls, recipe, settings: Settings) -> Needs:
        return Needs(
            DataNeeds(images=True, captions=(settings.request,)),
            modules=frozenset({"image_projection", "patch_projection", "pooling", "text", "logit_scale", "logit_bias"}),
            texts=frozenset({settings.request.name}),
        )

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"present": torch.tensor(len(batch))}

    def forward(self, features, totals: Totals) -> Terms:
        model, name, captions = features.model, self.settings.request.name, self.settings.captions_per_image
        scale, bias = model.logit_scale(), model.logit_bias()
        texts_TD = features.texts_everywhere(name).flatten(0, 1)
        met_BN, own_BN = meet_captions(
            features.batch.index_B, features.index_everywhere, captions, features.seed, features.step
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

        cosines_BT = all_cosines(features.image_embeds, texts_TD)
        positive_BT = (features.batch.index_B[:, None] == features.index_everywhere).repeat_interleave(captions, dim=1)
        agnostic_sum = sigmoid_contrast(cosines_BT, positive_BT, scale, bias)

        images = totals["present"]
        conditioned_loss = conditioned_sum / (images + captions - 1)
        agnostic_loss = agnostic_sum / (images * captions)
        loss = conditioned_loss + agnostic_loss
        return Terms(
            loss / 2 if self.settings.combine == "mean" else loss,
            {"logit_scale": scale.detach(), "logit_bias": bias.detach()},
        )
