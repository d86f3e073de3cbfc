"""The vision encoder as it leaves the project, and what the trained model says its outputs are.

Shapes: B images, S side of the picture, P patches, W width of the vision tower, D joint width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlp.errors import UserError
from vlp.models.model import VisionLanguageModel

INPUT = "pixel_values"
INPUT_DESCRIPTION = "float32 [B, 3, S, S], RGB in [0, 1] less mean, over std"
OUTPUTS = {
    "image_embed": "[B, D] text-agnostic image embedding, L2-normalised",
    "patch_tokens": "[B, P, W] patch tokens after the last norm, without class token",
    "penultimate_tokens": "[B, P, W] patch tokens from the last but one block, without norm and class token: "
    "LLaVA's select_layer=-2, select_feature=patch",
}
EPS = 1e-24


class VisionEncoder(nn.Module):
    """Normalised pixels [B, 3, S, S] to the `OUTPUTS`, in that order."""

    def __init__(self, model: VisionLanguageModel):
        """Raises `UserError` for a model that cannot give all outputs."""
        super().__init__()
        check_exportable(model)
        self.vit = model.vision.vit
        self.vit.set_grad_checkpointing(False)
        self.average = model.vision.pooling == "average"
        self.projection = model.image_projection

    def forward(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        depth, prefix = len(self.vit.blocks), self.vit.num_prefix_tokens
        tokens_BNW, (penultimate_BPW,) = self.vit.forward_intermediates(
            pixels_B3SS, indices=[depth - 2], output_fmt="NLC"
        )
        patches_BPW = tokens_BNW[:, prefix:]
        embed_BD = self.projection(patches_BPW.mean(1) if self.average else tokens_BNW[:, 0])
        # not F.normalize: its Expand breaks ONNX Runtime's shape inference, and with it quantisation
        embed_BD = embed_BD * torch.rsqrt((embed_BD * embed_BD).sum(-1, keepdim=True).clamp_min(EPS))
        return embed_BD, patches_BPW, penultimate_BPW


def check_exportable(model: VisionLanguageModel) -> None:
    """Raises `UserError` naming the recipe key that stands in the way."""
    if not hasattr(model, "image_projection"):
        raise UserError(
            "the recipe trains no image projection, so it has no image_embed; export a run with a contrastive objective"
        )
    if len(model.vision.vit.blocks) < 2:
        raise UserError("model.vision.depth: 1 leaves no last but one block for penultimate_tokens; train 2 or more")


@torch.inference_mode()
def reference_outputs(model: VisionLanguageModel, pixels_B3SS: Tensor) -> dict[str, Tensor]:
    """The `OUTPUTS` by the trained model's own forward, which every exported form is compared with.

    It shares no code with `VisionEncoder`: the penultimate tokens are caught where the last block reads them.
    """
    caught: list[Tensor] = []
    handle = model.vision.vit.blocks[-1].register_forward_pre_hook(lambda block, inputs: caught.append(inputs[0]))
    try:
        tokens_BNW = model.vision(pixels_B3SS)
    finally:
        handle.remove()
    return {
        "image_embed": normalize(model.image_embeds(tokens_BNW), dim=-1),
        "patch_tokens": model.vision.patches(tokens_BNW),
        "penultimate_tokens": model.vision.patches(caught[0]),
    }
