"""The vision tower: a timm vision transformer that gives all its tokens.

Shapes: B images, H W pixels, N tokens (class token, where there is one, then P patch tokens), W width.
"""

import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp.settings import DataSettings, VisionSettings


class VisionTower(nn.Module):
    """timm ViT over uint8 or float pixels; other input sizes get bicubically interpolated positions."""

    def __init__(self, settings: VisionSettings, data: DataSettings):
        super().__init__()
        self.vit = timm.create_model(settings.name, num_classes=0, **vit_arguments(settings))
        self.width: int = self.vit.embed_dim
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.prefix: int = self.vit.num_prefix_tokens
        self.pooling = settings.pooling
        self.patch_dropout = settings.patch_dropout
        self.register_buffer("mean", torch.tensor(data.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data.std).view(3, 1, 1), persistent=False)

    def normalise(self, images_B3HW: Tensor) -> Tensor:
        """uint8 pixels to normalised float, on the device that they are on; float pixels pass unchanged."""
        if images_B3HW.dtype != torch.uint8:
            return images_B3HW
        return (images_B3HW.to(self.mean.dtype) / 255 - self.mean) / self.std

    def forward(
        self, images_B3HW: Tensor, kept_BK: Tensor | None = None, masked: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """[B, N, W] tokens after the last norm.

        Args:
            kept_BK: the places of the patches that are kept; all of them where it is None.
            masked: the places [B, M] of patches that are hidden, and the token [W] that stands in their place.
        """
        if kept_BK is None and masked is None:
            return self.vit(self.normalise(images_B3HW))
        vit = self.vit
        x_BHWW = vit.patch_embed(self.normalise(images_B3HW))
        if masked is not None:
            places_BM, token_W = masked
            hidden_BP = torch.zeros(x_BHWW.shape[:-1], dtype=torch.bool, device=x_BHWW.device).flatten(1)
            hidden_BP = hidden_BP.scatter(1, places_BM, True)
            x_BHWW = torch.where(hidden_BP.view(*x_BHWW.shape[:-1], 1), token_W.to(x_BHWW.dtype), x_BHWW)
        x_BNW = vit._pos_embed(x_BHWW)
        if kept_BK is not None:
            patches_BKW = x_BNW[:, self.prefix :].gather(1, kept_BK[:, :, None].expand(-1, -1, self.width))
            x_BNW = torch.cat([x_BNW[:, : self.prefix], patches_BKW], dim=1)
        x_BNW = vit.norm_pre(x_BNW)
        for block in vit.blocks:
            x_BNW = checkpoint(block, x_BNW, use_reentrant=False) if vit.grad_checkpointing else block(x_BNW)
        return vit.norm(x_BNW)

    def patches_of(self, images_B3HW: Tensor) -> int:
        """How many patches a picture of this size has."""
        return (images_B3HW.shape[-2] // self.patch_size) * (images_B3HW.shape[-1] // self.patch_size)

    def kept_of(self, images_B3HW: Tensor) -> tuple[int, int]:
        """How many patches a picture of this size has, and how many of them training keeps."""
        patches = self.patches_of(images_B3HW)
        return patches, max(1, round(patches * (1 - self.patch_dropout)))

    def pool(self, tokens_BNW: Tensor) -> Tensor:
        """[B, W]: the class token, or the mean of the patch tokens."""
        return tokens_BNW[:, 0] if self.pooling == "cls" else self.patches(tokens_BNW).mean(1)

    def patches(self, tokens_BNW: Tensor) -> Tensor:
        """[B, P, W]: the tokens without the class token."""
        return tokens_BNW[:, self.prefix :]


def vit_arguments(settings: VisionSettings) -> dict:
    """Keyword arguments of `timm.create_model` for the tower that `settings` describe."""
    given = {
        "patch_size": settings.patch_size,
        "embed_dim": settings.width,
        "depth": settings.depth,
        "num_heads": settings.heads,
    }
    arguments = {key: value for key, value in given.items() if value is not None}
    if (
        settings.pooling == "average"
    ):  # the shape of SiglipVisionModel: no class token, no pre-norm, norm before the mean
        arguments |= {"class_token": False, "pre_norm": False, "fc_norm": False}
    return arguments | {"img_size": settings.image_size, "dynamic_img_size": True, "global_pool": ""}
