"""Self-distillation against loops over images, views, captions and prototypes."""

import math

import pytest
import torch
from torch import Tensor, nn

from vlp.data.batch import Batch
from vlp.models.ema import copy_student
from vlp.models.model import VisionLanguageModel
from vlp.objectives.distillation import (
    PrototypeHead,
    TextConditionedDistillation,
    distillation_loss,
    mean_entropy,
    teacher_targets,
)
from vlp.objectives.drawing import draw_caption
from vlp.objectives.interface import Needs

IMAGE = {"image_projection", "patch_projection", "pooling"}


# ---- naive versions, written from docs/method.md ---------------------------------------------------------------------


def naive_softmax(x: Tensor) -> Tensor:
    return x.exp() / sum(value.exp() for value in x)


def naive_distillation(student_SbC, teacher_GbC, center_C, tau_s: float, tau_t: float) -> Tensor:
    """Mean over images and over pairs (g, v != g) of H(softmax((z_g - c) / tau_t), softmax(z_v / tau_s))."""
    losses = []
    for i in range(student_SbC.shape[1]):
        for g in range(len(teacher_GbC)):
            for v in range(len(student_SbC)):
                if v != g:
                    q = naive_softmax((teacher_GbC[g, i].detach() - center_C) / tau_t)
                    p = naive_softmax(student_SbC[v, i] / tau_s)
                    losses.append(-sum(a * b.log() for a, b in zip(q, p, strict=True)))
    return sum(losses) / len(losses)


def naive_pool(pooling, text_D: Tensor, patches_PD: Tensor) -> Tensor:
    """Softmax over P + 1 keys, the last key and value zero."""
    query = pooling.query(pooling.norm_query(text_D))
    keys = [*pooling.key(pooling.norm_key(patches_PD)), torch.zeros_like(query)]
    values = [*pooling.value(pooling.norm_value(patches_PD)), torch.zeros_like(query)]
    size, found = len(query) // pooling.heads, []
    for start in range(0, len(query), size):
        part = slice(start, start + size)
        weights = naive_softmax(torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(size))
        found.append(sum(w * value[part] for w, value in zip(weights, values, strict=True)))
    return pooling.output(torch.cat(found))


def naive_embeddings(model, head_ta: Tensor, head_tc: Tensor, views, texts_bND) -> tuple[Tensor, Tensor]:
    """z_ta = P_ta v_g and z_tc = mean over captions of P_tc v_tc (projected first, then averaged): [S, b, C]."""
    agnostic, conditioned = [], []
    for tokens_bSNW in views:
        for view in range(tokens_bSNW.shape[1]):
            tokens_bNW = tokens_bSNW[:, view]
            agnostic.append(torch.stack([head_ta @ (model.image_projection.weight @ image[0]) for image in tokens_bNW]))
            rows = []
            for image, texts_ND in zip(tokens_bNW, texts_bND, strict=True):
                patches = torch.stack([model.patch_projection.weight @ token for token in image[1:]])
                rows.append(sum(head_tc @ naive_pool(model.pooling, text, patches) for text in texts_ND))
            conditioned.append(torch.stack(rows) / texts_bND.shape[1])
    return torch.stack(agnostic), torch.stack(conditioned)


# ---- pure functions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("global_views", "student_views", "images", "prototypes"), [(2, 8, 3, 5), (1, 2, 1, 2), (2, 2, 1, 7), (3, 4, 2, 3)]
)
def test_loss(global_views, student_views, images, prototypes, leaf, compare) -> None:
    student = leaf(student_views, images, prototypes, seed=1, scale=0.3)
    teacher = leaf(global_views, images, prototypes, seed=2, scale=0.1)
    center = leaf(prototypes, seed=3, scale=0.1).detach()
    ours = distillation_loss(student, teacher_targets(teacher, center, 0.04), 0.1) / images
    compare(ours, naive_distillation(student, teacher, center, 0.1, 0.04), [student, teacher])
    assert not teacher_targets(teacher, center, 0.04).requires_grad


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
        parts = [(leaf(4, n, 6, seed=10 * step + n), leaf(2, n, 6, seed=100 + 10 * step + n)) for n in (1, 3)]
        seen, count = 0.0, 0
        for student, teacher in parts:  # two micro-batches of one step: the same center for both
            targets, total = head.targets(teacher, 0.04)
            loss = distillation_loss(head.student(student), targets, 0.1)
            seen, count = seen + total, count + teacher.shape[0] * teacher.shape[1]
            teacher_C = torch.stack([torch.stack([head.teacher.weight @ x for x in view]) for view in teacher])
            student_C = torch.stack([torch.stack([head.student.weight @ x for x in view]) for view in student])
            naive = naive_distillation(student_C, teacher_C, before, 0.1, 0.04) * student.shape[1]
            torch.testing.assert_close(loss, naive, rtol=1e-10, atol=1e-10)
            assert torch.equal(head.center_C, before)
        head.end_step(seen, torch.tensor(count), 0.9, 0.9)
        every = [teacher_before @ x for _, teacher in parts for view in teacher for x in view]
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
def setting(tiny_recipe):
    def make(captions: int, negatives: int):
        recipe = tiny_recipe(
            "goldiclip",
            f"objectives.distillation.captions_per_image={captions}",
            f"objectives.distillation.negatives={negatives}",
            "objectives.distillation.prototypes=7",
        )
        torch.manual_seed(0)
        model, teacher = (VisionLanguageModel(recipe, IMAGE).double() for _ in range(2))
        objective = TextConditionedDistillation(recipe, recipe.objectives["distillation"], model).double()
        for part in (model.pooling, teacher.pooling, objective.agnostic, objective.conditioned):
            for parameter in part.parameters():
                nn.init.normal_(parameter, std=0.2)
        teacher.requires_grad_(False)
        for head in (objective.agnostic, objective.conditioned):
            nn.init.normal_(head.center_C, std=0.1)
        return objective, model, teacher

    return make


def conditioning(images: list[int], index: list[int], seed: int, step: int, captions: int) -> list[dict[int, int]]:
    """For each image, the caption that each other image shows to it."""
    drawn = draw_caption(seed, step, torch.tensor(images), torch.tensor(index), captions)
    return [{j: int(drawn[row, j]) for j in range(len(index)) if index[j] != image} for row, image in enumerate(images)]


@pytest.mark.parametrize(
    ("images", "captions", "negatives", "rows"), [(1, 1, 4, [0]), (4, 2, 9, [0, 3]), (3, 1, 2, [1]), (2, 3, 0, [0, 1])]
)
def test_objective(images, captions, negatives, rows, setting, given, leaf, compare) -> None:
    """All others condition here (`negatives` reaches them all, or none does), so the naive version needs no draw of
    which images, only of which captions."""
    objective, model, teacher = setting(captions, negatives)
    name = "diverse" if captions == 1 else f"diversex{captions}"
    texts, index = leaf(images, captions, 16, seed=20), [5 * i + 2 for i in range(images)]
    batch = Batch(index_B=torch.tensor(index), view_rows_b=torch.tensor(rows))
    count = len(rows)
    global_views, local_views = leaf(count, 2, 5, 32, seed=21), leaf(count, 3, 2, 32, seed=22)
    teacher_views = leaf(count, 2, 5, 32, seed=23)
    features = given(
        model,
        name,
        texts,
        index=index,
        seed=3,
        step=8,
        teacher=teacher,
        batch=batch,
        student_views=[global_views, local_views],
        teacher_views=[teacher_views],
    )
    totals = objective.counts(batch)
    assert totals["present"] == count
    terms = objective(features, totals)

    texts_bND = []
    for row, others in zip(rows, conditioning([index[r] for r in rows], index, 3, 8, captions), strict=True):
        drawn = [texts[j, k] for j, k in others.items()] if negatives else []
        texts_bND.append(torch.stack([*texts[row], *drawn]))
    texts_bND = torch.stack(texts_bND)
    student = naive_embeddings(
        model,
        objective.agnostic.student.weight,
        objective.conditioned.student.weight,
        [global_views, local_views],
        texts_bND,
    )
    taught = naive_embeddings(
        teacher, objective.agnostic.teacher.weight, objective.conditioned.teacher.weight, [teacher_views], texts_bND
    )
    centers = objective.agnostic.center_C, objective.conditioned.center_C
    naive = sum(
        naive_distillation(s, t, center, 0.1, 0.04) for s, t, center in zip(student, taught, centers, strict=True)
    )
    leaves = [texts, global_views, local_views, *model.pooling.parameters()]
    leaves += [model.image_projection.weight, model.patch_projection.weight]
    leaves += [objective.agnostic.student.weight, objective.conditioned.student.weight]
    compare(terms.loss, naive, leaves)
    assert torch.autograd.grad(terms.loss, texts, retain_graph=True)[0].any()  # through the student's branch
    assert torch.autograd.grad(terms.loss, teacher_views, retain_graph=True, allow_unused=True) == (None,)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(head.teacher.weight.requires_grad for head in (objective.agnostic, objective.conditioned))


@pytest.mark.parametrize(("images", "negatives"), [(6, 2), (6, 4), (6, 5), (6, 64), (1, 8), (6, 0)])
def test_conditioning_captions(images: int, negatives: int, setting, given, leaf) -> None:
    """Its own K captions, and one caption, the drawn one, of each of `negatives` different other images."""
    objective, model, _ = setting(2, negatives)
    texts = leaf(images, 2, 16, seed=30)
    rows, index = list(range(0, images, 2)), [7 * i + 1 for i in range(images)]
    batch = Batch(index_B=torch.tensor(index), view_rows_b=torch.tensor(rows))
    features = given(model, "diversex2", texts, index=index, seed=1, step=2, batch=batch)
    found = objective.conditioning_texts(features)
    count = min(negatives, images - 1)
    assert found.shape == (len(rows), 2 + count, 16)
    expected = conditioning([index[r] for r in rows], index, 1, 2, 2)
    for row, texts_ND, drawn in zip(rows, found, expected, strict=True):
        assert torch.equal(texts_ND[:2], texts[row])
        places = [divmod(int((texts.flatten(0, 1) == text).all(1).nonzero()), 2) for text in texts_ND[2:]]
        assert len({j for j, _ in places}) == count
        assert all(j != row and drawn[j] == k for j, k in places)


def test_shares_add_up(setting, given, leaf, compare) -> None:
    """Three ranks of uneven numbers of images, and one without any view."""
    objective, model, teacher = setting(2, 3)
    texts = leaf(6, 2, 16, seed=40)
    student, local, taught = leaf(6, 2, 5, 32, seed=41), leaf(6, 1, 2, 32, seed=42), leaf(6, 2, 5, 32, seed=43)

    def share(own: list[int], rows: list[int]) -> Tensor:
        images = [own[row] for row in rows]
        batch = Batch(index_B=torch.tensor(own), view_rows_b=torch.tensor(rows, dtype=torch.int64))
        features = given(
            model,
            "diversex2",
            texts,
            own,
            teacher=teacher,
            batch=batch,
            student_views=[student[images], local[images]],
            teacher_views=[taught[images]],
        )
        return objective(features, {"present": torch.tensor(4)}).loss

    whole = share(list(range(6)), [0, 2, 3, 5])
    parts = share([0, 1], [0]) + share([4], []) + share([2, 3, 5], [0, 1, 2])
    compare(parts, whole, [texts, student, local, *model.pooling.parameters()])


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
