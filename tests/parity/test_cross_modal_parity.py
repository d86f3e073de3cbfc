"""Cross-modal distillation against COSMOS' formula, one view and one text at a time [docs/method.md 4]."""

import pytest
import torch
from naive import attention, mean_clip, unit
from random_batch import random_batch
from shares import summed_shares
from torch import Tensor, nn

from vlp.data.batch import Batch
from vlp.data.tokens import END
from vlp.models.model import VisionLanguageModel
from vlp.objectives.cross_modal_distillation import CrossModalDistillation
from vlp.objectives.features import Features


def complete(pooling: nn.Module, x_D: Tensor, tokens_mW: Tensor) -> Tensor:
    """h = norm(x + MHA(LN(x), LN(c), LN(c)))"""
    context_mD = pooling.norm_tokens(pooling.tokens(tokens_mW))
    return unit(x_D + attention(pooling.attention, pooling.norm_query(x_D)[None], context_mD)[0])


def text_of(model: VisionLanguageModel, ids_L: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of one text without padding, and its embedding."""
    tokens, embed = model.text(ids_L[None, : ids_L.tolist().index(END) + 1])
    return tokens[0], embed[0]


def view_of(model: VisionLanguageModel, view_3HW: Tensor) -> tuple[Tensor, Tensor]:
    """The patch tokens of one view, and its embedding."""
    tokens_NW = model.vision(view_3HW[None])[0]
    return tokens_NW[1:], model.image_projection.weight @ tokens_NW[0]


def naive_loss(objective: CrossModalDistillation, model, teacher, batch: Batch, contrast: float) -> Tensor:
    """L = C({v globals}, {all texts}; s) + 1/4 [C(h_I, v') + C(h_I, t') + C(h_T, v') + C(h_T, t'); s_d]"""
    columns = {name: [] for name in ("v", "t", "h_I", "h_T", "v'", "t'")}
    for image in range(len(batch)):
        global_views, local_views = batch.global_views_bG3HW[image], batch.local_views_bV3HW[image]
        texts = [ids_L for ids_BKL in batch.captions.values() for ids_L in ids_BKL[image]]
        views = [view_of(model, view)[1] for view in (*global_views, *local_views)]
        embeds = [text_of(model, ids_L)[1] for ids_L in texts]
        first_text, first_view = text_of(model, texts[0])[0], view_of(model, global_views[0])[0]
        with torch.no_grad():
            taught_views = [view_of(teacher, view)[1] for view in global_views]
            taught_texts = [text_of(teacher, ids_L)[1] for ids_L in texts[: objective.settings.global_texts]]
        found = {
            "v": views[: len(global_views)],
            "t": embeds,
            "h_I": [complete(objective.text_pooling, view, first_text) for view in views],
            "h_T": [complete(objective.image_pooling, text, first_view) for text in embeds],
            "v'": taught_views,
            "t'": taught_texts,
        }
        for name, row in found.items():
            columns[name].append(torch.stack(row))
    sets = {name: torch.stack(rows).unbind(1) for name, rows in columns.items()}
    s_d = objective.logit_scale.log_scale.exp()
    distilled = [mean_clip(sets[student], sets[taught], s_d) for student in ("h_I", "h_T") for taught in ("v'", "t'")]
    return contrast * mean_clip(sets["v"], sets["t"], model.logit_scale.log_scale.exp()) + sum(distilled) / 4


@pytest.mark.parametrize(
    ("images", "views", "texts", "contrast"),
    [(1, (1, 1), (1, 1), 1.0), (4, (2, 1), (1, 2), 1.0), (3, (1, 2), (2, 0), 0.5), (2, (2, 0), (1, 1), 0.0)],
)
def test_cross_modal_distillation(images, views, texts, contrast, tiny_recipe, compare) -> None:
    """Texts of uneven lengths, the first one empty; scales of their own; nothing learns through the teacher."""
    recipe = tiny_recipe(
        "cosmos",
        f"objectives.distillation={{global_texts: {texts[0]}, local_texts: {texts[1]}, heads: 2}}",
        f"objectives.distillation.contrast={contrast}",
        f"data.views={{global_count: {views[0]}, local_count: {views[1]}, local_size: 32}}",
    )
    settings = recipe.objectives["distillation"]
    needs = CrossModalDistillation.needs(recipe, settings)
    torch.manual_seed(0)
    model = VisionLanguageModel(recipe, needs.modules).double()
    teacher = VisionLanguageModel(recipe, needs.teacher_modules).double()
    objective = CrossModalDistillation(recipe, settings, model).double()
    for name, parameter in objective.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "scale" in name else 0.0, std=0.3)
    batch = random_batch(needs.data, recipe, images, view_rows=range(images))
    ours = summed_shares(objective, [Features(model, teacher, batch, needs.texts, seed=0, step=0)])
    leaves = [*model.parameters(), *teacher.parameters(), *objective.parameters()]
    compare(ours, naive_loss(objective, model, teacher, batch, contrast), leaves)
