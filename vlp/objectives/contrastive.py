"""Contrast between images and captions: CLIP's softmax [arXiv 2103.00020] and SigLIP's sigmoid [arXiv 2303.15343].

Shapes: B own images, G images of the global batch, K captions per image, T texts, D joint width.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from vlp.data.batch import Batch, DataNeeds
from vlp.objectives.interface import CaptionSettings, Needs, Objective, Terms, Totals
from vlp.precision import full, without_autocast


@without_autocast
def softmax_contrast(
    own_images_BD: Tensor, own_texts_BD: Tensor, images_GD: Tensor, texts_GD: Tensor, own_B: Tensor, scale: Tensor
) -> Tensor:
    """The sum over own images and texts of -log softmax of their own partner, both directions halved.

    loss = 1/2 * sum_i [ CE(s * cos(image_i, texts), i) + CE(s * cos(text_i, images), i) ]

    Args:
        own_images_BD, own_texts_BD: pair i of this rank; images_GD, texts_GD: all pairs. Any scale: L2-normalised here.
        own_B: int64, where pair i stands among all pairs.
        scale: inverse temperature, [1].
    """
    own_images_BD, own_texts_BD, images_GD, texts_GD = (
        normalize(full(x), dim=-1) for x in (own_images_BD, own_texts_BD, images_GD, texts_GD)
    )
    image_to_text = cross_entropy(scale * own_images_BD @ texts_GD.T, own_B, reduction="sum")
    text_to_image = cross_entropy(scale * own_texts_BD @ images_GD.T, own_B, reduction="sum")
    return (image_to_text + text_to_image) / 2


@without_autocast
def all_cosines(images_BD: Tensor, texts_TD: Tensor) -> Tensor:
    """[B, T] cosine of every image with every text, float32."""
    return normalize(full(images_BD), dim=-1) @ normalize(full(texts_TD), dim=-1).T


def sigmoid_contrast(cosines: Tensor, positive: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """-sum log sigmoid(y * (s * cos + b)), y = 1 where `positive`, else -1. Any shape; a float32 scalar."""
    logits = scale * full(cosines) + bias
    return -logsigmoid(torch.where(positive, logits, -logits)).sum()


def agnostic_sum(features, texts: str, scale: Tensor, bias: Tensor) -> Tensor:
    """The sigmoid contrast of the own images' text-agnostic embeddings with every caption of the global batch."""
    texts_GKD = features.everywhere[texts]
    own_BG = features.batch.index_B[:, None] == features.everywhere["index"]
    cosines_BT = all_cosines(features.own["images"], texts_GKD.flatten(0, 1))
    return sigmoid_contrast(cosines_BT, own_BG.repeat_interleave(texts_GKD.shape[1], dim=1), scale, bias)


def pairwise_contrast(
    own_images_BnD: Tensor, own_texts_BmD: Tensor, images_GnD: Tensor, texts_GmD: Tensor, own_B: Tensor, scale: Tensor
) -> Tensor:
    """The mean of `softmax_contrast` over all pairs of one of n image embeddings with one of m text embeddings."""
    losses = [
        softmax_contrast(own_images_BnD[:, n], own_texts_BmD[:, m], images_GnD[:, n], texts_GmD[:, m], own_B, scale)
        for n in range(own_images_BnD.shape[1])
        for m in range(own_texts_BmD.shape[1])
    ]
    return sum(losses) / len(losses)


class PairContrastive(Objective):
    """Contrast of every image with the captions of all images, on text-agnostic embeddings."""

    Settings = CaptionSettings
    modules = frozenset({"image_projection", "text", "logit_scale"})

    @classmethod
    def needs(cls, recipe, settings: CaptionSettings) -> Needs:
        return Needs(
            DataNeeds(images=True, captions=(settings.request,)),
            modules=cls.modules,
            texts=frozenset({settings.request.name}),
        )

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"present": torch.tensor(len(batch))}

    def shared(self, features) -> dict[str, Tensor]:
        return {"images": features.image_embeds, self.settings.texts: features.texts(self.settings.request.name)}


class SoftmaxContrastive(PairContrastive):
    """CLIP's loss, a mean over the global batch in both directions; with K captions per image, the mean of K such
    losses, the k-th among everyone's k-th captions."""

    class Settings(CaptionSettings):
        type: Literal["softmax_contrastive"]

    def forward(self, features, totals: Totals) -> Terms:
        scale = features.model.logit_scale()
        own, everywhere = features.own, features.everywhere
        loss = pairwise_contrast(
            own["images"][:, None],
            own[self.settings.texts],
            everywhere["images"][:, None],
            everywhere[self.settings.texts],
            features.place_B,
            scale,
        )
        return Terms(loss / totals["present"], {"logit_scale": scale.detach()})


class SigmoidContrastive(PairContrastive):
    """SigLIP's loss [arXiv 2303.15343]: every pair is a yes-or-no question; the sum over all pairs divided by the
    number of captions in the global batch."""

    class Settings(CaptionSettings):
        type: Literal["sigmoid_contrastive"]

    modules = PairContrastive.modules | {"logit_bias"}

    def forward(self, features, totals: Totals) -> Terms:
        scale, bias = features.model.logit_scale(), features.model.logit_bias()
        loss = agnostic_sum(features, self.settings.texts, scale, bias) / (
            totals["present"] * self.settings.captions_per_image
        )
        return Terms(loss, {"logit_scale": scale.detach(), "logit_bias": bias.detach()})
