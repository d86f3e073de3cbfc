"""The student: two towers, their projections, and the modules between them. Only what a recipe reads is built.

Shapes: B images, N tokens, P patches, W width of the vision tower, D joint width, T texts, L token ids.
"""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlp.models.decoder import Decoder
from vlp.models.pooling import TextConditionedPooling
from vlp.models.text import TextTower
from vlp.models.vision import VisionTower
from vlp.precision import full

if TYPE_CHECKING:
    from vlp.recipe import Recipe

MODULES = ("image_projection", "text", "patch_projection", "pooling", "decoder", "mask_token", "logit_scale",
           "logit_bias")  # fmt: skip
"""What a recipe's objectives can ask for beside the vision tower."""

ONLY_FOR_TRAINING = frozenset({"decoder", "mask_token"})
"""Modules that are discarded after training [docs/method.md 3, Decoder]."""


class VisionLanguageModel(nn.Module):
    """The vision tower, and of `MODULES` those in `modules`."""

    def __init__(self, recipe: "Recipe", modules: Collection[str]):
        super().__init__()
        model = recipe.model
        self.vision = VisionTower(model.vision, recipe.data)
        self.vision.requires_grad_(not model.vision.locked)
        if recipe.engine.activation_checkpointing:
            self.vision.vit.set_grad_checkpointing()
        if "image_projection" in modules:
            self.image_projection = _projection(self.vision.width, model.embed_dim)
        if "patch_projection" in modules and (model.pooling is None or model.pooling.projection == "separate"):
            self.patch_projection = _projection(self.vision.width, model.embed_dim)
        if "text" in modules:
            self.text = TextTower(model.text, model.embed_dim)
            self.text.set_grad_checkpointing(recipe.engine.activation_checkpointing)
        if "pooling" in modules:
            self.pooling = TextConditionedPooling(model.embed_dim, model.pooling.heads)
        if "decoder" in modules:
            self.decoder = Decoder(model.decoder, model.embed_dim, model.text)
        if "mask_token" in modules:
            self.mask_token = MaskToken(self.vision.width)
        if "logit_scale" in modules:
            self.logit_scale = LogitScale(model.logit_scale, model.logit_scale_max)
        if "logit_bias" in modules:
            self.logit_bias = LogitBias(model.logit_bias)

    def image_embeds(self, tokens_BNW: Tensor) -> Tensor:
        """[B, D] text-agnostic image embeddings v_g, not normalised."""
        return self.image_projection(self.vision.pool(tokens_BNW))

    def patch_embeds(self, tokens_BNW: Tensor) -> Tensor:
        """[B, P, D] projected patch tokens v_loc: keys and values of the pooling and of the decoder."""
        projection = self.patch_projection if hasattr(self, "patch_projection") else self.image_projection
        return projection(self.vision.patches(tokens_BNW))


class LogitScale(nn.Module):
    """The learned inverse temperature of contrastive losses. Shape [1]: DeepSpeed does not start with scalars."""

    def __init__(self, start: float, largest: float):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([start]).log())
        self.log_largest = math.log(largest)

    def forward(self) -> Tensor:
        """float32 [1], at most `largest`. Past it only gradients that lower the scale pass, which is what clamping
        the parameter after each step does, but holds for parameters that ZeRO keeps elsewhere too."""
        log_scale = full(self.log_scale) * 1.0
        beyond = log_scale.detach() > self.log_largest
        if log_scale.requires_grad:
            log_scale.register_hook(lambda gradient: torch.where(beyond & (gradient < 0), 0.0, gradient))
        return (log_scale + (log_scale.clamp(max=self.log_largest) - log_scale).detach()).exp()


class LogitBias(nn.Module):
    """The learned bias of sigmoid losses."""

    def __init__(self, start: float):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([start]))

    def forward(self) -> Tensor:
        """float32 [1]"""
        return full(self.bias)


class MaskToken(nn.Module):
    """What stands in the place of a masked patch."""

    def __init__(self, width: int):
        super().__init__()
        self.token = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def forward(self) -> Tensor:
        """[W]"""
        return self.token * 1.0


def _projection(width: int, embed_dim: int) -> nn.Linear:
    projection = nn.Linear(width, embed_dim, bias=False)
    nn.init.normal_(projection.weight, std=width**-0.5)
    return projection
