"""Self-distillation over views, text-conditioned and text-agnostic: GoldiCLIP [docs/method.md 3, Distillation].

Shapes: b images with views, G global and V local views, S student views (G + V), N conditioning captions,
D joint width, C prototypes, P patches.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vlp.data.batch import Batch, DataNeeds
from vlp.data.captions import CaptionKind
from vlp.models.ema import copy_student, update_teacher
from vlp.models.model import VisionLanguageModel
from vlp.objectives.drawing import draw_caption, draw_others
from vlp.objectives.interface import CaptionSettings, Needs, Objective, Terms, Totals
from vlp.precision import full, without_autocast
from vlp.settings import ObjectiveSettings, Positive, Share


def teacher_targets(teacher_GbC: Tensor, center_C: Tensor, temperature: float) -> Tensor:
    """q = softmax((z - c) / tau_t), float32, without gradient."""
    return torch.softmax((full(teacher_GbC.detach()) - center_C) / temperature, dim=-1)


@without_autocast
def distillation_loss(student_SbC: Tensor, targets_GbC: Tensor, temperature: float) -> Tensor:
    """Sum over images of the mean over pairs (teacher view g, student view v != g) of H(q_g, softmax(z_v / tau_s)).

    The first G student views are the teacher's views; a view is not compared with itself (C17).
    H(q, p) = logsumexp(z) - q . z, so the G x S log-softmaxes are never formed.
    """
    student_SbC = full(student_SbC) / temperature
    agreement_GS = torch.einsum("gbc,sbc->gs", targets_GbC, student_SbC)
    spread_S = student_SbC.logsumexp(-1).sum(-1)
    different_GS = ~torch.eye(len(targets_GbC), len(student_SbC), dtype=torch.bool, device=targets_GbC.device)
    return ((spread_S - agreement_GS) * different_GS).sum() / different_GS.sum()


class PrototypeHead(nn.Module):
    """Projection to the prototypes, its EMA twin, and the running center of what the twin says.

    No bias, hidden layer or input norm (C15).
    """

    def __init__(self, width: int, prototypes: int):
        super().__init__()
        self.student = nn.Linear(width, prototypes, bias=False)
        self.teacher = nn.Linear(width, prototypes, bias=False)
        copy_student(self.teacher, self.student)
        self.register_buffer("center_C", torch.zeros(prototypes))

    def targets(self, teacher_GbD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The twin's softmax targets [G, b, C], and the sum [C] of what it said, for the center."""
        with torch.no_grad():
            teacher_GbC = full(self.teacher(teacher_GbD))
            return teacher_targets(teacher_GbC, self.center_C, temperature), teacher_GbC.sum((0, 1))

    @torch.no_grad()
    def end_step(self, sum_C: Tensor, count: Tensor, teacher_momentum: float, center_momentum: float) -> None:
        """After use: c <- m c + (1 - m) * mean over the global batch; the twin moves towards the student."""
        mean_C = torch.where(count > 0, sum_C / count.clamp(min=1), self.center_C)
        self.center_C.lerp_(mean_C.to(self.center_C), 1 - center_momentum)
        update_teacher(self.teacher, self.student, teacher_momentum)


class DistillationSettings(ObjectiveSettings):
    """What the objectives that compare views with a teacher's have."""

    prototypes: Annotated[int, Field(ge=2)] = 65_536
    student_temperature: float = Field(0.1, gt=0)
    teacher_temperature: float = Field(0.04, gt=0)
    center_momentum: float = Field(0.9, ge=0, lt=1)
    share: Share = Field(1.0, description="share of the images whose views are drawn")


class PrototypeObjective(Objective):
    """What objectives with prototype heads have: they count images with views, and after a step each head moves by
    what `Terms.observed` says under the head's name, of which there were `views`."""

    def __init__(self, recipe, settings: DistillationSettings, model: VisionLanguageModel):
        super().__init__(recipe, settings, model)
        self.teacher_momentum = recipe.model.teacher_momentum

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"present": torch.tensor(len(batch.view_rows_b))}

    def end_step(self, observed: Totals) -> None:
        for name, head in self.named_children():
            head.end_step(observed[name], observed["views"], self.teacher_momentum, self.settings.center_momentum)


class SelfDistillation(PrototypeObjective):
    """L_ta: DINO's loss between views of an image, on the text-agnostic embedding z_ta = P_ta v_g(view), as in SILC
    [docs/method.md 4]."""

    class Settings(DistillationSettings):
        type: Literal["self_distillation"]

    modules = frozenset({"image_projection"})

    def __init__(self, recipe, settings: DistillationSettings, model: VisionLanguageModel):
        super().__init__(recipe, settings, model)
        self.agnostic = PrototypeHead(recipe.model.embed_dim, settings.prototypes)

    @classmethod
    def check(cls, recipe, settings: DistillationSettings) -> None:
        views = recipe.data.views
        if views is None:
            raise ValueError("distillation compares views of an image; set data.views.global_count and local_count")
        if views.global_count + views.local_count < 2:
            raise ValueError("distillation needs two views or more; raise data.views.global_count or local_count")

    @classmethod
    def needs(cls, recipe, settings: DistillationSettings) -> Needs:
        return Needs(DataNeeds(view_share=settings.share), modules=cls.modules, teacher_modules=cls.modules)

    def forward(self, features, totals: Totals) -> Terms:
        student = agnostic_views(features.model, features.student_views)
        with torch.no_grad():
            teacher = agnostic_views(features.teacher, features.teacher_views)
        return self.distil(totals, agnostic=(student, teacher))

    def distil(self, totals: Totals, **views: tuple[Tensor, Tensor]) -> Terms:
        """The terms of the loss, added up; each is named by its head and has the views of student [S, b, D] and
        teacher [G, b, D]."""
        terms = Terms(torch.zeros((), device=totals["present"].device))
        for name, (student_SbD, teacher_GbD) in views.items():
            head: PrototypeHead = getattr(self, name)
            targets_GbC, terms.observed[name] = head.targets(teacher_GbD, self.settings.teacher_temperature)
            terms.observed["views"] = torch.tensor(teacher_GbD.shape[0] * teacher_GbD.shape[1])
            loss = distillation_loss(head.student(student_SbD), targets_GbC, self.settings.student_temperature)
            terms.loss = terms.loss + loss / totals["present"].clamp(min=1)
            terms.scalars[f"teacher_entropy_{name}"] = mean_entropy(targets_GbC)
        return terms


class TextConditionedDistillation(SelfDistillation):
    """L_SD = L_ta + L_tc.

    z_tc = P_tc mean_N v_tc(view | t_n). P_tc is linear, and so is the pooling's output projection, hence the mean over
    captions is taken before both. The captions that condition an image's views are its own K and one drawn caption of
    `negatives` other images; their gradient flows through the student branch only.
    """

    class Settings(DistillationSettings, CaptionSettings):
        type: Literal["text_conditioned_distillation"]
        captions: CaptionKind = "diverse"
        captions_per_image: Positive = 8
        negatives: Annotated[int, Field(ge=0)] = 64

    modules = frozenset({"image_projection", "patch_projection", "pooling"})

    def __init__(self, recipe, settings: Settings, model: VisionLanguageModel):
        super().__init__(recipe, settings, model)
        self.conditioned = PrototypeHead(recipe.model.embed_dim, settings.prototypes)

    @classmethod
    def check(cls, recipe, settings: Settings) -> None:
        super().check(recipe, settings)
        if recipe.model.pooling is None:
            raise ValueError("text-conditioned distillation reads model.pooling, which is null; remove that line")

    @classmethod
    def needs(cls, recipe, settings: Settings) -> Needs:
        return super().needs(recipe, settings) | Needs(
            DataNeeds(captions=(settings.request,)),
            modules=frozenset({"text"}),
            texts=frozenset({settings.request.name}),
        )

    def shared(self, features) -> dict[str, Tensor]:
        return {self.settings.texts: features.texts(self.settings.request.name)}

    def forward(self, features, totals: Totals) -> Terms:
        texts_bND = self.conditioning_texts(features)
        student = agnostic_views(features.model, features.student_views)
        conditioned = conditioned_views(features.model, features.student_views, texts_bND)
        with torch.no_grad():
            teacher = agnostic_views(features.teacher, features.teacher_views)
            teacher_conditioned = conditioned_views(features.teacher, features.teacher_views, texts_bND)
        return self.distil(totals, agnostic=(student, teacher), conditioned=(conditioned, teacher_conditioned))

    def conditioning_texts(self, features) -> Tensor:
        """[b, N, D]: own captions, then one drawn caption of each of `negatives` other images."""
        batch, index_G, texts_GKD = (
            features.batch,
            features.everywhere["index"],
            features.everywhere[self.settings.texts],
        )
        own_bKD = features.own[self.settings.texts][batch.view_rows_b]
        count = min(self.settings.negatives, len(index_G) - 1)
        if count == 0:
            return own_bKD
        images_b = batch.index_B[batch.view_rows_b]
        places_bn = draw_others(features.seed, features.step, images_b, index_G, count)
        drawn_bG = draw_caption(features.seed, features.step, images_b, index_G, texts_GKD.shape[1])
        return torch.cat([own_bKD, texts_GKD[places_bn, drawn_bG.gather(1, places_bn)]], dim=1)


def agnostic_views(model: VisionLanguageModel, views: list[Tensor]) -> Tensor:
    """[S, b, D] text-agnostic embeddings of views given as tokens [b, S_i, N, W]."""
    return torch.cat(
        [model.image_embeds(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]) for tokens in views], dim=1
    ).transpose(0, 1)


def conditioned_views(model: VisionLanguageModel, views: list[Tensor], texts_bND: Tensor) -> Tensor:
    """[S, b, D] text-conditioned embeddings, averaged over the N texts, of views given as tokens [b, S_i, N, W]."""
    embeds = []
    queries_bND = model.pooling.queries(texts_bND)
    for tokens in views:
        keys_values = model.pooling.keys_values(model.patch_embeds(tokens.flatten(0, 1)))
        found_fND = model.pooling.attend(queries_bND.repeat_interleave(tokens.shape[1], dim=0), keys_values)
        embeds.append(model.pooling.output(found_fND.mean(1)).unflatten(0, tokens.shape[:2]))
    return torch.cat(embeds, dim=1).transpose(0, 1)


def mean_entropy(targets_GbC: Tensor) -> Tensor:
    """The entropy of the mean target: 0 when the teacher says the same of everything (it has collapsed)."""
    mean_C = targets_GbC.sum((0, 1)) / max(1, targets_GbC.shape[:2].numel())
    return -(mean_C * mean_C.clamp(min=1e-12).log()).sum()
