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
from vlp.engine.distributed import sum_over_ranks
from vlp.models.ema import copy_student, update_teacher
from vlp.models.model import VisionLanguageModel
from vlp.objectives.drawing import draw_caption, draw_others
from vlp.objectives.interface import CaptionSettings, Needs, Objective, Terms, Totals
from vlp.precision import full, without_autocast
from vlp.settings import Positive, Share


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
        self.seen: list[tuple[Tensor, int]] = []

    def forward(
        self, student_SbD: Tensor, teacher_GbD: Tensor, student_temperature: float, teacher_temperature: float
    ) -> tuple[Tensor, Tensor]:
        """The loss summed over images, and the entropy of the mean target (0 when the teacher has collapsed)."""
        with torch.no_grad():
            teacher_GbC = full(self.teacher(teacher_GbD))
            targets_GbC = teacher_targets(teacher_GbC, self.center_C, teacher_temperature)
            mean_C = targets_GbC.sum((0, 1)) / max(1, targets_GbC.shape[:2].numel())
        if self.training:
            self.seen.append((teacher_GbC.sum((0, 1)), teacher_GbC.shape[0] * teacher_GbC.shape[1]))
        loss = distillation_loss(self.student(student_SbD), targets_GbC, student_temperature)
        return loss, -(mean_C * mean_C.clamp(min=1e-12).log()).sum()

    @torch.no_grad()
    def end_step(self, teacher_momentum: float, center_momentum: float) -> None:
        """After use: c <- m c + (1 - m) * mean over the global batch; the twin moves towards the student."""
        if not self.seen:
            return
        count = sum(count for _, count in self.seen)
        total = sum_over_ranks(
            {"sum": sum(part for part, _ in self.seen), "count": torch.tensor(count, device=self.center_C.device)}
        )
        mean_C = torch.where(total["count"] > 0, total["sum"] / total["count"].clamp(min=1), self.center_C)
        self.center_C.lerp_(mean_C, 1 - center_momentum)
        self.seen.clear()
        update_teacher(self.teacher, self.student, teacher_momentum)


class TextConditionedDistillation(Objective):
    """L_SD = L_ta + L_tc.

    z_ta = P_ta v_g(view); z_tc = P_tc mean_N v_tc(view | t_n). P_tc is linear, and so is the pooling's output
    projection, hence the mean over captions is taken before both. The captions that condition an image's views are
    its own K and one drawn caption of `negatives` other images; their gradient flows through the student branch only.
    """

    class Settings(CaptionSettings):
        type: Literal["text_conditioned_distillation"]
        captions: CaptionKind = "diverse"
        captions_per_image: Positive = 8
        negatives: Annotated[int, Field(ge=0)] = 64
        prototypes: Annotated[int, Field(ge=2)] = 65_536
        student_temperature: float = Field(0.1, gt=0)
        teacher_temperature: float = Field(0.04, gt=0)
        center_momentum: float = Field(0.9, ge=0, lt=1)
        share: Share = Field(1.0, description="share of the images whose views are drawn")

    splits_batch = False

    def __init__(self, recipe, settings: Settings, model: VisionLanguageModel):
        super().__init__(recipe, settings, model)
        self.teacher_momentum = recipe.model.teacher_momentum
        self.agnostic = PrototypeHead(recipe.model.embed_dim, settings.prototypes)
        self.conditioned = PrototypeHead(recipe.model.embed_dim, settings.prototypes)

    @classmethod
    def check(cls, recipe, settings: Settings) -> None:
        if recipe.data.views is None:
            raise ValueError("distillation compares views of an image; set data.views.global_count and local_count")
        if recipe.model.pooling is None:
            raise ValueError("text-conditioned distillation reads model.pooling, which is null; remove that line")
        views = recipe.data.views
        if views.global_count + views.local_count < 2:
            raise ValueError("distillation needs two views or more; raise data.views.global_count or local_count")

    @classmethod
    def needs(cls, recipe, settings: Settings) -> Needs:
        image = frozenset({"image_projection", "patch_projection", "pooling"})
        return Needs(
            DataNeeds(images=True, captions=(settings.request,), view_share=settings.share),
            modules=image | {"text"},
            teacher_modules=image,
            texts=frozenset({settings.request.name}),
        )

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"present": torch.tensor(len(batch.view_rows_b))}

    def forward(self, features, totals: Totals) -> Terms:
        texts_bND = self.conditioning_texts(features)
        student_ta, student_tc = self.embed(features.model, features.student_views, texts_bND)
        with torch.no_grad():
            teacher_ta, teacher_tc = self.embed(features.teacher, features.teacher_views, texts_bND.detach())
        temperatures = self.settings.student_temperature, self.settings.teacher_temperature
        agnostic, entropy_ta = self.agnostic(student_ta, teacher_ta, *temperatures)
        conditioned, entropy_tc = self.conditioned(student_tc, teacher_tc, *temperatures)
        images = totals["present"].clamp(min=1)
        return Terms(
            (agnostic + conditioned) / images,
            {"teacher_entropy_agnostic": entropy_ta, "teacher_entropy_conditioned": entropy_tc},
        )

    def conditioning_texts(self, features) -> Tensor:
        """[b, N, D]: own captions, then one drawn caption of each of `negatives` other images."""
        name, captions = self.settings.request.name, self.settings.captions_per_image
        batch, index_G = features.batch, features.index_everywhere
        own_bKD = features.texts(name)[batch.view_rows_b]
        count = min(self.settings.negatives, len(index_G) - 1)
        if count == 0:
            return own_bKD
        images_b = batch.index_B[batch.view_rows_b]
        places_bn = draw_others(features.seed, features.step, images_b, index_G, count)
        drawn_bG = draw_caption(features.seed, features.step, images_b, index_G, captions)
        others_bnD = features.texts_everywhere(name)[places_bn, drawn_bG.gather(1, places_bn)]
        return torch.cat([own_bKD, others_bnD], dim=1)

    @staticmethod
    def embed(model: VisionLanguageModel, views: list[Tensor], texts_bND: Tensor) -> tuple[Tensor, Tensor]:
        """Agnostic and conditioned embeddings, [S, b, D] each, of views given as tokens [b, S_i, tokens, W]."""
        agnostic, conditioned = [], []
        queries_bND = model.pooling.queries(texts_bND)
        for tokens_bSNW in views:
            count = tokens_bSNW.shape[1]
            flat = tokens_bSNW.flatten(0, 1)
            agnostic.append(model.image_embeds(flat).unflatten(0, (-1, count)))
            found_fND = model.pooling.attend(
                queries_bND.repeat_interleave(count, dim=0), model.pooling.keys_values(model.patch_embeds(flat))
            )
            conditioned.append(model.pooling.output(found_fND.mean(1)).unflatten(0, (-1, count)))
        return torch.cat(agnostic, dim=1).transpose(0, 1), torch.cat(conditioned, dim=1).transpose(0, 1)

    def end_step(self) -> None:
        for head in (self.agnostic, self.conditioned):
            head.end_step(self.teacher_momentum, self.settings.center_momentum)
