"""Softmax contrast between images and captions: CLIP [arXiv 2103.00020].

Shapes: B own images, G images of the global batch, D joint width.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from vlp.data.batch import Batch, DataNeeds
from vlp.data.captions import CaptionKind, CaptionRequest
from vlp.objectives.interface import Needs, Objective, Terms, Totals
from vlp.precision import full, without_autocast
from vlp.settings import ObjectiveSettings


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


class SoftmaxContrastive(Objective):
    """CLIP's loss, a mean over the global batch in both directions, on one caption per image."""

    class Settings(ObjectiveSettings):
        type: Literal["softmax_contrastive"]
        captions: CaptionKind = "any"

    splits_batch = False

    @classmethod
    def needs(cls, recipe, settings: Settings) -> Needs:
        request = CaptionRequest(settings.captions)
        return Needs(
            DataNeeds(images=True, captions=(request,)),
            modules=frozenset({"image_projection", "text", "logit_scale"}),
            texts=frozenset({request.name}),
        )

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"present": torch.tensor(len(batch))}

    def forward(self, features, totals: Totals) -> Terms:
        name = CaptionRequest(self.settings.captions).name
        scale = features.model.logit_scale()
        texts_BD, texts_GD = features.texts(name)[:, 0], features.texts_everywhere(name)[:, 0]
        loss = softmax_contrast(
            features.image_embeds, texts_BD, features.images_everywhere, texts_GD, features.place_B, scale
        )
        return Terms(loss / totals["present"], {"logit_scale": scale.detach()})
