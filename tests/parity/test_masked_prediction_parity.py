"""Masked prediction against a vision tower put together patch by patch, and a loop over masked patches."""

import pytest
import torch
from random_batch import random_batch
from shares import summed_shares
from torch import Tensor, nn

from vlp.data.batch import Batch
from vlp.models.model import VisionLanguageModel
from vlp.models.vision import VisionTower
from vlp.objectives.drawing import draw_patches
from vlp.objectives.features import Features
from vlp.objectives.masked_prediction import MaskedPrediction

SEED, STEP = 2, 7


def patch_tokens(tower: VisionTower, picture_3HW: Tensor, masked: list[int], token_W: Tensor) -> list[Tensor]:
    """The last layer's patch tokens of a picture, the token standing in the place of the masked patches."""
    vit, size = tower.vit, tower.patch_size
    picture_3HW = (picture_3HW.double() / 255 - tower.mean) / tower.std
    kernel, bias = vit.patch_embed.proj.weight.flatten(1), vit.patch_embed.proj.bias
    row = [vit.cls_token[0, 0]]
    for y in range(0, picture_3HW.shape[1], size):
        for x in range(0, picture_3HW.shape[2], size):
            seen = picture_3HW[:, y : y + size, x : x + size].flatten()
            row.append(token_W if len(row) - 1 in masked else (kernel * seen).sum(1) + (0 if bias is None else bias))
    x_1NW = vit.norm_pre((torch.stack(row) + vit.pos_embed[0])[None])
    for block in vit.blocks:
        x_1NW = block(x_1NW)
    return list(vit.norm(x_1NW)[0, 1:])


def naive_loss(objective: MaskedPrediction, model, teacher, batch: Batch) -> Tensor:
    """mean over images of the mean over masked patches of H(softmax((P' z' - c) / 0.04), softmax(P z / 0.1)); the
    teacher sees the first global view whole, the student sees it masked."""
    head, losses = objective.patches, []
    for row, views in zip(batch.view_rows_b.tolist(), batch.global_views_bG3HW, strict=True):
        patches = (views.shape[-1] // 16) ** 2
        count = max(1, round(patches * objective.settings.masked))
        (masked,) = draw_patches(SEED, STEP, batch.index_B[row : row + 1], patches, count).tolist()
        student = patch_tokens(model.vision, views[0], masked, model.mask_token.token)
        with torch.no_grad():
            taught = patch_tokens(teacher.vision, views[0], [], model.mask_token.token)
        terms = []
        for place in masked:
            q = torch.exp((head.teacher.weight @ taught[place] - head.center_C) / 0.04)
            p = torch.exp(head.student.weight @ student[place] / 0.1)
            terms.append(-(q / q.sum() * torch.log(p / p.sum())).sum())
        losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("images", "rows", "share", "views"),
    [(1, [0], 0.5, 1), (3, [0, 2], 0.3, 2), (2, [1], 1.0, 2), (2, [0, 1], 0.01, 1)],
)
def test_masked_prediction(images, rows, share, views, tiny_recipe, compare) -> None:
    """From one masked patch to all nine, on some of the images; only masked ones count, and unmasked ones are seen."""
    recipe = tiny_recipe(
        "siglip2_style",
        f"objectives.masked={{prototypes: 11, masked: {share}}}",
        f"data.views={{global_count: {views}, local_count: 1, local_size: 48}}",
        "model.vision.image_size=48",
    )
    torch.manual_seed(0)
    model, teacher = (VisionLanguageModel(recipe, {"mask_token"}).double() for _ in range(2))
    objective = MaskedPrediction(recipe, recipe.objectives["masked"], model).double()
    nn.init.normal_(objective.patches.center_C, std=0.1)
    nn.init.normal_(objective.patches.teacher.weight, std=0.1)
    batch = random_batch(objective.needs(recipe, objective.settings).data, recipe, images, view_rows=rows)
    batch.index_B = batch.index_B * 4 + 3
    ours = summed_shares(objective, [Features(model, teacher, batch, frozenset(), SEED, STEP)])
    leaves = [*model.parameters(), *teacher.parameters(), objective.patches.student.weight]
    compare(ours, naive_loss(objective, model, teacher, batch), leaves)
