"""Self-distillation, text-agnostic (SILC) and text-conditioned (GoldiCLIP), against loops over images and views."""

import pytest
import torch
from naive import distillation, pool
from shares import summed_shares, uneven_parts
from torch import Tensor, nn

from vlp.data.batch import Batch
from vlp.models.model import VisionLanguageModel
from vlp.objectives.distillation import PrototypeHead, SelfDistillation, TextConditionedDistillation
from vlp.objectives.drawing import draw_caption, draw_others

IMAGE = {"image_projection", "patch_projection", "pooling"}
SEED, STEP = 3, 8


def agnostic(model: VisionLanguageModel, view_NW: Tensor, prototypes: nn.Linear) -> Tensor:
    """z_ta = P_ta v_g"""
    return prototypes.weight @ (model.image_projection.weight @ view_NW[0])


def conditioned(model: VisionLanguageModel, view_NW: Tensor, prototypes: nn.Linear, texts: list[Tensor]) -> Tensor:
    """z_tc = mean over captions of P_tc v_tc: projected first, then averaged (C15)."""
    patches_PD = torch.stack([model.patch_projection.weight @ token for token in view_NW[1:]])
    return sum(prototypes.weight @ pool(model.pooling, text, patches_PD) for text in texts) / len(texts)


def naive_term(embed, model, teacher, head: PrototypeHead, students, teachers, *texts) -> Tensor:
    """The loss of one image from its student's and its teacher's views."""
    student = [embed(model, view, head.student, *texts) for view in students]
    target = [embed(teacher, view, head.teacher, *texts) for view in teachers]
    return distillation(student, target, head.center_C)


def conditioning_texts(image: int, index: list[int], texts_BKD: Tensor, negatives: int) -> list[Tensor]:
    """Its own captions, and the drawn caption of each drawn other image."""
    images, others = torch.tensor([index[image]]), torch.tensor(index)
    drawn = draw_caption(SEED, STEP, images, others, texts_BKD.shape[1])[0]
    chosen = draw_others(SEED, STEP, images, others, negatives)[0].tolist()
    return [*texts_BKD[image], *(texts_BKD[j, drawn[j]] for j in chosen)]


@pytest.fixture
def setting(tiny_recipe):
    def make(kind: type, recipe: str, **settings: int):
        overrides = [f"objectives.distillation.{key}={value}" for key, value in {"prototypes": 7, **settings}.items()]
        recipe = tiny_recipe(recipe, *overrides)
        torch.manual_seed(0)
        model, teacher = (VisionLanguageModel(recipe, IMAGE).double() for _ in range(2))
        objective = kind(recipe, recipe.objectives["distillation"], model).double()
        for part in (model.pooling, teacher.pooling, *objective.children()):
            for parameter in part.parameters():
                nn.init.normal_(parameter, std=0.2)
        for head in objective.children():
            nn.init.normal_(head.center_C, std=0.1)
        return objective, model, teacher

    return make


@pytest.fixture
def shares_of(given, leaf):
    """Our loss added up over uneven parts, and the views [images, views, N, W] that student and teacher see."""

    def run(objective, model, teacher, index, rows, views: tuple[int, int], texts=None):
        sizes = (views[0], 5), (views[1], 2), (views[0], 5)
        seen = [leaf(len(rows), *size, 32, seed=20 + place) for place, size in enumerate(sizes)]
        parts = []
        for part in uneven_parts(len(index)):
            own = [place for place, row in enumerate(rows) if row in part]
            batch = Batch(
                index_B=torch.tensor([index[image] for image in part]),
                view_rows_b=torch.tensor([part.index(rows[place]) for place in own], dtype=torch.int64),
            )
            parts.append(
                given(
                    model,
                    batch,
                    {} if texts is None else {objective.settings.request.name: texts[part]},
                    seed=SEED,
                    step=STEP,
                    teacher=teacher,
                    student_views=[tensor[own] for tensor in seen[:2] if tensor.shape[1]],
                    teacher_views=[seen[2][own]],
                )
            )
        loss = summed_shares(objective, parts)
        students = [[*seen[0][place], *seen[1][place]] for place in range(len(rows))]
        return loss, students, seen

    return run


@pytest.mark.parametrize(
    ("images", "rows", "views"),
    [(1, [0], (2, 6)), (5, [3, 0], (2, 1)), (4, [0, 1, 2, 3], (3, 0)), (3, [2], (1, 1))],
)
def test_self_distillation(images, rows, views, setting, shares_of, compare) -> None:
    """Parts without any view among them. Neither the teacher's model nor its head gets a gradient."""
    objective, model, teacher = setting(SelfDistillation, "silc")
    index = [5 * i + 2 for i in range(images)]
    ours, students, seen = shares_of(objective, model, teacher, index, rows, views)
    head, pairs = objective.agnostic, zip(students, seen[2], strict=True)
    naive = [naive_term(agnostic, model, teacher, head, student, taught) for student, taught in pairs]
    leaves = [*seen, model.image_projection.weight, teacher.image_projection.weight, head.student.weight]
    compare(ours, sum(naive) / len(naive), leaves)


@pytest.mark.parametrize(
    ("images", "captions", "negatives", "rows", "views"),
    [(1, 1, 4, [0], (2, 1)), (4, 2, 9, [3, 0], (2, 3)), (5, 2, 2, [1, 4, 0, 3], (2, 1)), (2, 3, 0, [0, 1], (2, 0))],
)
def test_text_conditioned_distillation(
    images, captions, negatives, rows, views, setting, shares_of, leaf, compare
) -> None:
    """Conditioned by own captions and those of all, of some or of no others; captions learn as the student's alone."""
    settings = {"captions_per_image": captions, "negatives": negatives}
    objective, model, teacher = setting(TextConditionedDistillation, "goldiclip", **settings)
    index, texts = [5 * i + 2 for i in range(images)], leaf(images, captions, 16, seed=30)
    ours, students, seen = shares_of(objective, model, teacher, index, rows, views, texts)
    naive = []
    for row, student, taught in zip(rows, students, seen[2], strict=True):
        chosen = conditioning_texts(row, index, texts, negatives)
        naive.append(naive_term(agnostic, model, teacher, objective.agnostic, student, taught))
        naive.append(naive_term(conditioned, model, teacher, objective.conditioned, student, taught, chosen))
    leaves = [texts, *seen, *model.pooling.parameters(), *teacher.pooling.parameters()]
    leaves += [side.weight for one in (model, teacher) for side in (one.image_projection, one.patch_projection)]
    leaves += [objective.agnostic.student.weight, objective.conditioned.student.weight]
    compare(ours, sum(naive) / len(rows), leaves)
