"""Contrast of sub-captions with what they group against loops over captions and patches (DreamLIP)."""

import json

import pytest
import torch
from naive import clip, cosine, unit
from shares import summed_shares, uneven_parts
from torch import Tensor

from vlp.data.batch import Batch
from vlp.models.model import VisionLanguageModel
from vlp.objectives.grouped_contrast import GroupedContrastive


def naive_group(text_D: Tensor, patches_PD: Tensor, sparsity: float) -> Tensor:
    """The mean of the patches' directions under their cosines with the text, brought to [0, 1]; weights below
    `sparsity` are zero, the rest is divided by its sum."""
    alike = [cosine(text_D, patch) for patch in patches_PD]
    lowest, highest = min(alike), max(alike)
    weights = [(value - lowest) / (highest - lowest) for value in alike]
    kept = [(weight, unit(patch)) for weight, patch in zip(weights, patches_PD, strict=True) if weight >= sparsity]
    return sum(weight * patch for weight, patch in kept) / sum(weight for weight, _ in kept)


@pytest.mark.parametrize("negatives", ["image", "batch"])
@pytest.mark.parametrize(
    ("images", "captions", "patches", "sparsity"),
    [
        (1, 1, 4, None),
        (1, 3, 2, None),
        (4, 1, 6, None),
        (5, 3, 9, None),
        (5, 3, 9, 0.6),
        (3, 2, 5, 0.0),
        (3, 2, 5, 1.0),
    ],
)
def test_grouped_contrast(images, captions, patches, sparsity, negatives, tiny_recipe, given, leaf, compare) -> None:
    """Against the other sub-captions of the image or of the batch; a patch's least weight is 1 / patches or given."""
    changes = {"negatives": negatives, "sparsity": sparsity, "captions_per_image": captions}
    recipe = tiny_recipe("dreamlip", f"objectives.grouping={json.dumps(changes)}")
    settings = recipe.objectives["grouping"]
    model = VisionLanguageModel(recipe, {"logit_scale"}).double()
    texts, tokens = leaf(images, captions, 16, seed=1), leaf(images, patches, 16, seed=2)
    parts = [
        given(
            model,
            Batch(index_B=3 * torch.tensor(rows) + 1),
            {settings.request.name: texts[rows]},
            patch_embeds=tokens[rows],
        )
        for rows in uneven_parts(images)
    ]
    ours = summed_shares(GroupedContrastive(recipe, settings, model), parts)

    least = 1 / patches if sparsity is None else sparsity
    grouped = torch.stack(
        [torch.stack([naive_group(text, tokens[i], least) for text in texts[i]]) for i in range(images)]
    )
    log_scale = model.logit_scale.log_scale
    if negatives == "batch":
        naive = clip(grouped.flatten(0, 1), texts.flatten(0, 1), log_scale.exp())
    else:
        naive = sum(clip(grouped[i], texts[i], log_scale.exp()) for i in range(images)) / images
    compare(ours, naive, [texts, tokens, log_scale])
