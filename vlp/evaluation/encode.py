"""Validation samples, and their embeddings under a trained student.

Shapes: B images, P patches, D joint width, T texts, L token ids, S side of the input picture.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlp.data.captions import read_captions
from vlp.data.shards import IMAGE_SUFFIXES, BadSample, image_bytes, read_annotations, read_shard
from vlp.data.sources import expand_shards, is_remote
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
    files: dict[str, bytes]


@dataclass
class Subject:
    """What is evaluated: a student, and the validation samples encoded once for all tasks.

    `images_BD` and `patches_BPD` are float32 on the CPU, not normalised; None where the student has no such
    projection or no task reads them.
    """

    recipe: Recipe
    model: VisionLanguageModel
    samples: list[ValidationSample]
    images_BD: Tensor | None
    patches_BPD: Tensor | None

    @property
    def device(self) -> torch.device:
        return self.model.vision.mean.device

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """float32 [T, D] text embeddings on the CPU, not normalised."""
        return encode_texts(self.model, texts, self.recipe.evaluation.batch_size)

    def require(self, task: str, *modules: str) -> None:
        """Raises `UserError` when the student lacks one of `modules`, because no objective trained it."""
        for name in modules:
            if not hasattr(self.model, name):
                raise UserError(
                    f"{task}: recipe '{self.recipe.name}' trains no {name}; "
                    "evaluate a run with a contrastive objective, or leave this task out"
                )


def encode_subject(recipe: Recipe, model: VisionLanguageModel, patches: bool) -> Subject:
    """Read and encode the validation samples; patch tokens when `patches` or when the student pools them by text."""
    samples = read_validation(recipe)
    patches = hasattr(model, "image_projection") and (patches or hasattr(model, "pooling"))
    return Subject(recipe, model, samples, *encode_images(model, samples, recipe.evaluation.batch_size, patches))


def read_validation(recipe: Recipe) -> list[ValidationSample]:
    """The validation samples in the shards' order; one that does not decode is left out.

    Raises:
        UserError: when the recipe names no validation shards, or they hold no usable sample.
    """
    data, size = recipe.data, recipe.model.vision.image_size
    raws = (raw for shard in validation_shards(recipe) for raw in read_shard(shard))
    samples = []
    for raw in islice(raws, recipe.evaluation.samples):
        try:
            image = decode_image(image_bytes(raw), size)
            captions = read_captions(read_annotations(raw), data.fields)
        except (BadSample, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
        pixels = render(image, center_crop(*image.size), size)
        files = {name: raw[name] for name in raw if not name.startswith("__") and name not in IMAGE_SUFFIXES}
        samples.append(ValidationSample(raw["__key__"], pixels, captions, files))
    if not samples:
        raise UserError(f"data.validation: {data.validation} holds no usable sample")
    return samples


def validation_shards(recipe: Recipe) -> list[str]:
    """Raises `UserError` when the recipe names none, or none is there."""
    if recipe.data.validation is None:
        raise UserError("data.validation: null; name the validation shards to evaluate")
    return expand_shards(recipe.data.validation, recipe.data.cache)


def read_table(recipe: Recipe, key: str, layout: str) -> Any:
    """The JSON file that a task reads: `evaluation.KEY` of the recipe, else `KEY.json` beside the validation shards.

    Args:
        key: `questions` or `classes`.
        layout: what the file holds, for the error.

    Raises:
        UserError: when it is not there or no JSON.
    """
    given, shard = getattr(recipe.evaluation, key), validation_shards(recipe)[0]
    if given is None and is_remote(shard):
        raise UserError(f"evaluation.{key}: null, and the validation shards are remote; name the file: {layout}")
    path = Path(given).expanduser() if given else Path(shard).parent / f"{key}.json"
    try:
        return json.loads(path.read_text())
    except OSError as error:
        reason = f"cannot be read ({error.strerror})" if path.exists() else "does not exist"
    except ValueError as error:
        reason = f"is no JSON ({error})"
    raise UserError(f"{path} {reason}; expected there, or at evaluation.{key}=FILE: {layout}")


@torch.inference_mode()
def encode_images(
    model: VisionLanguageModel, samples: Sequence[ValidationSample], batch_size: int, patches: bool
) -> tuple[Tensor | None, Tensor | None]:
    """float32 on the CPU: [B, D] image embeddings where the student has a projection for them, and [B, P, D]
    projected patch tokens when `patches`."""
    device = model.vision.mean.device
    embeds, patch_embeds = [], []
    for start in range(0, len(samples), batch_size):
        pixels = np.stack([sample.image for sample in samples[start : start + batch_size]])
        tokens = model.vision(torch.from_numpy(pixels).to(device))
        if hasattr(model, "image_projection"):
            embeds.append(model.image_embeds(tokens).float().cpu())
        if patches:
            patch_embeds.append(model.patch_embeds(tokens).float().cpu())
    return torch.cat(embeds) if embeds else None, torch.cat(patch_embeds) if patch_embeds else None


@torch.inference_mode()
def encode_texts(model: VisionLanguageModel, texts: Sequence[str], batch_size: int) -> Tensor:
    """float32 [T, D] text embeddings on the CPU, not normalised."""
    device = model.vision.mean.device
    parts = [
        model.text(tokenize(texts[start : start + batch_size], model.text.context_length).to(device))[1]
        for start in range(0, len(texts), batch_size)
    ]
    return torch.cat(parts).float().cpu()
