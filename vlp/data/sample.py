"""One raw sample to what the objectives read of it: views, caption ids, prompt ids."""

import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from vlp.data import tokens
from vlp.data.batch import Batch, DataNeeds, Prompts
from vlp.data.captions import read_captions, sample_captions
from vlp.data.prompts import encode_prompt, make_prompt
from vlp.data.shards import BadSample, check_name, image_bytes, read_annotations
from vlp.data.views import Crop, decode_image, random_crop, render, render_view
from vlp.recipe import Recipe


@dataclass
class Sample:
    """A sample ready for `collate`. Captions and prompts are ids without padding; `missing` names tasks it had nothing
    for. `crop` is what `image` shows of the picture, `texts` what the captions say."""

    image: np.ndarray
    crop: Crop
    texts: dict[str, list[str]]
    captions: dict[str, list[list[int]]]
    prompts: dict[str, tuple[list[int], int, bool]] = field(default_factory=dict)
    views: tuple[list[np.ndarray], list[np.ndarray]] | None = None
    missing: list[str] = field(default_factory=list)


def sample_rng(seed: int, turn: int, key: str) -> np.random.Generator:
    """Draws everything of a sample, whichever rank or worker reads it. `turn` is how often it was read before."""
    return np.random.default_rng((seed, turn, zlib.crc32(key.encode())))


def make_sample(raw: dict[str, Any], needs: DataNeeds, recipe: Recipe, turn: int, rng: np.random.Generator) -> Sample:
    """Decode once, then draw crops, captions and prompts with `rng`.

    Args:
        turn: the sample's running number; it decides whose turn it is where a task or the views read only a
            share of the images, so that every batch has the same number of them.

    Raises:
        BadSample: when the picture does not decode or a requested caption kind is absent.
    """
    data, context = recipe.data, recipe.model.text.context_length
    check_name(raw["__key__"])
    annotations = read_annotations(raw)
    captions = read_captions(annotations, data.fields)
    texts = {}
    for request in needs.captions:
        drawn = sample_captions(captions, request, rng)
        if not drawn:
            raise BadSample("no_caption")
        texts[request.name] = drawn

    size = recipe.model.vision.image_size
    largest = max(size, recipe.views.global_size) if needs.view_share else size
    image = decode_image(image_bytes(raw), largest)
    crop = random_crop(*image.size, data.crop_scale, rng)
    if data.flip:
        crop = replace(crop, mirrored=rng.random() < data.flip)
    pixels = np.array(image)
    ids = {name: [tokens.encode_caption(text, context) for text in drawn] for name, drawn in texts.items()}
    sample = Sample(render(pixels, crop, size), crop, texts, ids)
    for offset, request in enumerate(needs.tasks):
        if not has_turn(turn + offset, request.share):
            continue
        prompt = make_prompt(request, captions, annotations, crop, size, data, rng)
        if prompt is None:
            sample.missing.append(request.task)
        else:
            parallel = request.parallel > 0 and rng.random() < request.parallel
            sample.prompts[request.name] = (*encode_prompt(*prompt, context), parallel)
    if needs.view_share and has_turn(turn, needs.view_share):
        sample.views = draw_views(pixels, recipe, rng)
    return sample


def has_turn(turn: int, share: float) -> bool:
    """Whether `turn` is one of the evenly spread `share` of all turns."""
    return int((turn + 1) * share + 1e-9) > int(turn * share + 1e-9)


def draw_views(
    pixels: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Global and local crops of a picture [height, width, 3] for self-distillation (C13)."""
    views = recipe.views
    return (
        [render_view(pixels, views.global_size, views.global_scale, views, rng) for _ in range(views.global_count)],
        [render_view(pixels, views.local_size, views.local_scale, views, rng) for _ in range(views.local_count)],
    )


def collate(samples: list[Sample], index: list[int], needs: DataNeeds, recipe: Recipe) -> Batch:
    """Samples to one `Batch`; `index` are their numbers within the global batch."""
    context = recipe.model.text.context_length
    batch = Batch(index_B=torch.tensor(index))
    if needs.images:
        batch.images_B3HW = torch.from_numpy(np.stack([sample.image for sample in samples]))
    for request in needs.captions:
        ids_TL = tokens.pad([ids for sample in samples for ids in sample.captions[request.name]], context)
        batch.captions[request.name] = ids_TL.view(len(samples), request.count, -1)
    for request in needs.tasks:
        found = [
            (row, *sample.prompts[request.name]) for row, sample in enumerate(samples) if request.name in sample.prompts
        ]
        ids_RL = tokens.pad([ids for _, ids, _, _ in found], context)
        if request.parallel:  # such a prompt attends to the whole row, whose length may not depend on other images
            ids_RL = torch.nn.functional.pad(ids_RL, (0, context - ids_RL.shape[1]), value=tokens.PAD)
        batch.prompts[request.name] = Prompts(
            ids_RL,
            answer_start_R=torch.tensor([start for _, _, start, _ in found], dtype=torch.int64),
            rows_R=torch.tensor([row for row, _, _, _ in found], dtype=torch.int64),
            parallel_R=torch.tensor([parallel for _, _, _, parallel in found], dtype=torch.bool),
        )
    if needs.view_share:
        views = recipe.views
        rows = [row for row, sample in enumerate(samples) if sample.views is not None]
        batch.view_rows_b = torch.tensor(rows, dtype=torch.int64)
        batch.global_views_bG3HW = _stack(
            [samples[row].views[0] for row in rows], views.global_count, views.global_size
        )
        batch.local_views_bV3HW = _stack([samples[row].views[1] for row in rows], views.local_count, views.local_size)
    return batch


def _stack(views: list[list[np.ndarray]], count: int, size: int) -> torch.Tensor:
    shape = (len(views), count, 3, size, size)
    return torch.from_numpy(np.array(views, dtype=np.uint8).reshape(shape))
