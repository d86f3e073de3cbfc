"""Validation samples, and their embeddings under a trained student.

Shapes: B images, P patches, D joint width, T texts, L token ids, S side of the input picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from vlp.data.captions import read_captions
from vlp.data.shards import BadSample, expand_shards, image_bytes, read_annotations, read_shard
from vlp.data.tokens import tokenize
from vlp.data.views import center_crop, decode_image, render
from vlp.errors import UserError
from vlp.models.model import VisionLanguageModel
from vlp.recipe import Recipe


@dataclass
class ValidationSample:
    """One picture as evaluation sees it (the centred square, resized), its captions by kind, and its other files."""

    key: str
    image: np.ndarray
    captions: dict[str, list[str]]
    raw: dict[str, bytes]


def read_validation(recipe: Recipe) -> list[ValidationSample]:
    """The validation samples in the shards' order; one that does not decode is left out.

    Raises:
        UserError: when the recipe names no validation shards, or they hold no usable sample.
    """
    data, size = recipe.data, recipe.model.vision.image_size
    if data.validation is None:
        raise UserError("data.validation: null; name the validation shards to evaluate")
    raws = (raw for shard in expand_shards(data.validation, data.cache) for raw in read_shard(shard))
    samples = []
    for raw in islice(raws, recipe.evaluation.samples):
        try:
            image = decode_image(image_bytes(raw), size)
            captions = read_captions(read_annotations(raw), data.fields)
        except (BadSample, OSError, ValueError, SyntaxError):
            continue
        pixels = render(image, center_crop(*image.size), size)
        samples.append(ValidationSample(raw["__key__"], pixels, captions, raw))
    if not samples:
        raise UserError(f"data.validation: {data.validation} holds no usable sample")
    return samples


@torch.inference_mode()
def encode_images(
    model: VisionLanguageModel, samples: Sequence[ValidationSample], batch_size: int, patches: bool
) -> tuple[Tensor, Tensor | None]:
    """float32 on the CPU: [B, D] image embeddings, and [B, P, D] projected patch tokens when `patches`."""
    device = model.vision.mean.device
    embeds, patch_embeds = [], []
    for start in range(0, len(samples), batch_size):
        pixels = np.stack([sample.image for sample in samples[start : start + batch_size]])
        tokens = model.vision(torch.from_numpy(pixels).to(device))
        embeds.append(model.image_embeds(tokens).float().cpu())
        if patches:
            patch_embeds.append(model.patch_embeds(tokens).float().cpu())
    return torch.cat(embeds), torch.cat(patch_embeds) if patches else None


@torch.inference_mode()
def encode_texts(model: VisionLanguageModel, texts: Sequence[str], batch_size: int) -> Tensor:
    """float32 [T, D] text embeddings on the CPU."""
    device = model.vision.mean.device
    parts = [
        model.text(tokenize(texts[start : start + batch_size], model.text.context_length).to(device))[1]
        for start in range(0, len(texts), batch_size)
    ]
    return torch.cat(parts).float().cpu()
