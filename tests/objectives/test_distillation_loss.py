"""Centers, teachers, and which captions condition views. Values and gradients: tests/parity."""

import pytest
import torch
from random_batch import random_batch
from torch import nn

from vlp.data.batch import Batch
from vlp.models.ema import copy_student
from vlp.models.model import VisionLanguageModel
from vlp.objectives import REGISTRY
from vlp.objectives.distillation import (
    PrototypeHead,
    TextConditionedDistillation,
    distillation_loss,
    mean_entropy,
    teacher_targets,
)
from vlp.objectives.drawing import draw_caption, draw_patches
from vlp.objectives.features import Features
from vlp.objectives.interface import Needs

IMAGE = {"image_projection", "patch_projection", "pooling"}


def test_a_view_is_not_compared_with_itself(leaf) -> None:
    """With one global and one local view the global student view has no partner: its gradient is zero."""
    student, teacher = leaf(2, 3, 4, seed=4), leaf(1, 3, 4, seed=5)
    distillation_loss(student, teacher_targets(teacher, torch.zeros(4), 0.04), 0.1).backward()
    assert not student.grad[0].any()
    assert student.grad[1].any()
    assert teacher.grad is None


def test_projecting_the_mean_is_the_mean_of_the_projections(leaf) -> None:
    """P is linear (C15), so captions are averaged before it; after a normalisation it would not hold."""
    head = nn.Linear(6, 40, bias=False).double()
    found = leaf(3, 5, 6, seed=6)
    torch.testing.assert_close(head(found.mean(1)), head(found).mean(1), rtol=1e-12, atol=1e-12)
    unit = nn.functional.normalize
    assert not torch.allclose(head(unit(found.mean(1), dim=-1)), head(unit(found, dim=-1)).mean(1), atol=1e-3)


# ---- prototypes and centers -------------------------------------------------------------------------------------


def test_center_moves_after_use_towards_the_batch_mean(leaf) -> None:
    head = PrototypeHead(6, 5).double()
    with torch.no_grad():  # a twin of its own, to tell the two apart
        head.teacher.weight.normal_()
    center = torch.zeros(5, dtype=torch.float64)
    for step in range(3):
        before, teacher_before = head.center_C.clone(), head.teacher.weight.clone()
        parts = [leaf(2, n, 6, seed=100 + 10 * step + n) for n in (1, 3)]
        seen, count = 0.0, 0
        for teacher in parts:  # two micro-batches of one step: the same center for both
            seen, count = seen + head.targets(teacher, 0.04)[1], count + teacher.shape[0] * teacher.shape[1]
            assert torch.equal(head.center_C, before)
        head.end_step(seen, torch.tensor(count), 0.9, 0.9)
        every = [teacher_before @ x for teacher in parts for view in teacher for x in view]
        center = 0.9 * center + 0.1 * sum(every) / len(every)
        torch.testing.assert_close(head.center_C, center.detach(), rtol=1e-10, atol=1e-12)
        expected = 0.9 * teacher_before + 0.1 * head.student.weight
        torch.testing.assert_close(head.teacher.weight, expected, rtol=1e-10, atol=1e-12)


def test_center_stays_when_the_global_batch_has_no_views(leaf) -> None:
    """The mean over no view is no value to move to."""
    head = PrototypeHead(6, 5).double()
    nn.init.normal_(head.center_C)
    center = head.center_C.clone()
    targets, seen = head.targets(leaf(2, 0, 6), 0.04)
    assert distillation_loss(head.student(leaf(4, 0, 6)), targets, 0.1) == 0
    head.end_step(seen, torch.tensor(0), 0.9, 0.9)
    assert torch.equal(head.center_C, center)


def test_scalars_are_finite_without_views(leaf) -> None:
    """They go to metrics.jsonl, where NaN is no JSON."""
    assert torch.isfinite(mean_entropy(leaf(2, 0, 5)))


# ---- the objective ----------------------------------------------------------------------------------------------


@pytest.fixture
def build(tiny_recipe):
    def build(recipe: str, objective: str, *overrides: str):
        """The recipe, its objective with 7 prototypes, the model and its teacher."""
        recipe = tiny_recipe(recipe, *(f"objectives.{objective}.{change}" for change in ("prototypes=7", *overrides)))
        settings = recipe.objectives[objective]
        kind = REGISTRY[settings.type]
        torch.manual_seed(0)
        needs = kind.needs(recipe, settings)
        model, teacher = (VisionLanguageModel(recipe, needs.modules - {"text"}).double() for _ in range(2))
        return recipe, kind(recipe, settings, model).double(), model, teacher

    return build


def conditioning(images: list[int], index: list[int], seed: int, step: int, captions: int) -> list[dict[int, int]]:
    """For each image, the caption that each other image shows to it."""
    drawn = draw_caption(seed, step, torch.tensor(images), torch.tensor(index), captions)
    return [{j: int(drawn[row, j]) for j in range(len(index)) if index[j] != image} for row, image in enumerate(images)]


@pytest.mark.parametrize(("images", "negatives"), [(6, 2), (6, 4), (6, 5), (6, 64), (1, 8), (6, 0)])
def test_conditioning_captions(images: int, negatives: int, build, given, leaf) -> None:
    """Its own K captions, and one caption, the drawn one, of each of `negatives` different other images."""
    changes = "captions_per_image=2", f"negatives={negatives}"
    _, objective, model, _ = build("goldiclip", "distillation", *changes)
    texts = leaf(images, 2, 16, seed=30)
    rows, index = list(range(0, images, 2)), [7 * i + 1 for i in range(images)]
    batch = Batch(index_B=torch.tensor(index), view_rows_b=torch.tensor(rows))
    features = given(model, batch, {"diversex2": texts}, seed=1, step=2)
    features.share({"index": batch.index_B} | objective.shared(features))
    found = objective.conditioning_texts(features)
    count = min(negatives, images - 1)
    assert found.shape == (len(rows), 2 + count, 16)
    expected = conditioning([index[r] for r in rows], index, 1, 2, 2)
    for row, texts_ND, drawn in zip(rows, found, expected, strict=True):
        assert torch.equal(texts_ND[:2], texts[row])
        places = [divmod(int((texts.flatten(0, 1) == text).all(1).nonzero()), 2) for text in texts_ND[2:]]
        assert len({j for j, _ in places}) == count
        assert all(j != row and drawn[j] == k for j, k in places)


@pytest.mark.parametrize(("recipe", "name"), [("silc", "distillation"), ("siglip2_style", "masked")])
def test_an_objective_moves_its_head_by_what_the_teacher_said(recipe: str, name: str, build) -> None:
    """The center moves to the mean over images and global views, that of patches to the mean over masked patches."""
    recipe, objective, model, teacher = build(recipe, name, "center_momentum=0.75")
    (head,) = objective.children()
    nn.init.normal_(head.teacher.weight)
    nn.init.normal_(head.center_C)
    batch = random_batch(objective.needs(recipe, objective.settings).data, recipe, images=3)
    totals = objective.counts(batch)
    views_bGNW = [teacher.vision(views) for views in batch.global_views_bG3HW]
    if name == "masked":
        places = draw_patches(0, 1, batch.index_B[batch.view_rows_b], patches=4, count=2)
        seen = torch.cat([views[0, 1:][chosen] for views, chosen in zip(views_bGNW, places, strict=True)])
    else:
        seen = teacher.image_embeds(torch.cat(views_bGNW))
    center = 0.75 * head.center_C + 0.25 * head.teacher(seen).mean(0)
    momentum = recipe.model.teacher_momentum
    twin = momentum * head.teacher.weight + (1 - momentum) * head.student.weight
    objective.end_step(objective(Features(model, teacher, batch, frozenset(), 0, 1), totals).observed)
    torch.testing.assert_close(head.center_C, center, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(head.teacher.weight, twin, rtol=1e-10, atol=1e-10)


def test_teacher_starts_as_its_student_and_needs_the_image_side_only(tiny_recipe) -> None:
    head = PrototypeHead(4, 6)
    assert torch.equal(head.teacher.weight, head.student.weight)
    assert not head.teacher.weight.requires_grad
    recipe = tiny_recipe("goldiclip")
    needs: Needs = TextConditionedDistillation.needs(recipe, recipe.objectives["distillation"])
    assert needs.teacher_modules == IMAGE
    student, teacher = VisionLanguageModel(recipe, needs.modules), VisionLanguageModel(recipe, needs.teacher_modules)
    copy_student(teacher, student)
    values = dict(student.named_parameters())
    assert all(torch.equal(p, values[name]) for name, p in teacher.named_parameters())
    assert not hasattr(teacher, "text")
