"""Cross-modal self-distillation: COSMOS [arXiv 2412.01814; docs/method.md 4].

Shapes: B own images, G images of the global batch, V views of an image (g of them global), K texts of an image
(k of them global), D joint width, P patches, L token ids, W width of the text tower.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlp.data.batch import Batch, DataNeeds
from vlp.data.captions import CaptionRequest
from vlp.data.tokens import END
from vlp.models.decoder import Attention
from vlp.models.model import LogitScale, VisionLanguageModel
from vlp.objectives.contrastive import pairwise_contrast
from vlp.objectives.distillation import agnostic_views
from vlp.objectives.interface import Needs, Objective, Terms, Totals
from vlp.settings import Count, ObjectiveSettings, Positive


class CrossPooling(nn.Module):
    """h = norm(x + MHA(LN(x), LN(c), LN(c))): what an embedding x finds among the tokens c of the other modality."""

    def __init__(self, context_width: int, width: int, heads: int):
        super().__init__()
        self.tokens = nn.Linear(context_width, width)
        self.norm_query = nn.LayerNorm(width)
        self.norm_tokens = nn.LayerNorm(width)
        self.attention = Attention(width, heads)

    def forward(self, embeds_BnD: Tensor, tokens_BmW: Tensor, seen_Bm: Tensor | None = None) -> Tensor:
        """[B, n, D]; tokens where `seen_Bm` (bool) is false are not looked at."""
        seen_Bnm = None if seen_Bm is None else seen_Bm[:, None].expand(-1, embeds_BnD.shape[1], -1)
        context_BmD = self.norm_tokens(self.tokens(tokens_BmW))
        return normalize(embeds_BnD + self.attention(self.norm_query(embeds_BnD), context_BmD, seen_Bnm), dim=-1)


class CrossModalDistillation(Objective):
    """L = C({v_1..v_g}, {t_1..t_K}; s) + 1/4 [C(h_I, v') + C(h_I, t') + C(h_T, v') + C(h_T, t'); s_d].

    C is CLIP's loss averaged over all pairs of a view or text of one set with one of the other. v and t are the
    student's embeddings of views and texts, h_I = v + what v finds in the first text's tokens, h_T = t + what t finds
    in the first view's patches; v' and t' are the EMA teacher's embeddings of the global views and texts. s and s_d
    are learned scales. Padding is not looked at, which COSMOS does.
    """

    class Settings(ObjectiveSettings):
        type: Literal["cross_modal_distillation"]
        global_texts: Positive = 2
        local_texts: Count = 6
        heads: Positive = 8
        contrast: float = Field(1.0, ge=0, description="weight of the contrast between global views and texts")

        @property
        def requests(self) -> tuple[CaptionRequest, ...]:
            """One to five sentences each, and single sentences."""
            requests = CaptionRequest("passage", self.global_texts), CaptionRequest("sentence", self.local_texts)
            return requests if self.local_texts else requests[:1]

    def __init__(self, recipe, settings: Settings, model: VisionLanguageModel):
        super().__init__(recipe, settings, model)
        width = recipe.model.embed_dim
        self.image_pooling = CrossPooling(model.vision.width, width, settings.heads)
        self.text_pooling = CrossPooling(recipe.model.text.width, width, settings.heads)
        self.logit_scale = LogitScale(recipe.model.logit_scale, recipe.model.logit_scale_max)

    @classmethod
    def check(cls, recipe, settings: Settings) -> None:
        if recipe.data.views is None:
            raise ValueError("cross-modal distillation compares views of an image; set data.views.global_count")
        if recipe.model.embed_dim % settings.heads:
            raise ValueError(f"heads: model.embed_dim={recipe.model.embed_dim} does not divide over {settings.heads}")

    @classmethod
    def needs(cls, recipe, settings: Settings) -> Needs:
        towers = frozenset({"image_projection", "text"})
        return Needs(
            DataNeeds(captions=settings.requests, view_share=1.0),
            modules=towers | {"logit_scale"},
            teacher_modules=towers,
            texts=frozenset(request.name for request in settings.requests),
        )

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"present": torch.tensor(len(batch))}

    def shared(self, features) -> dict[str, Tensor]:
        names = [request.name for request in self.settings.requests]
        views_BVD = agnostic_views(features.model, features.student_views).transpose(0, 1)
        texts_BKD = torch.cat([features.texts(name) for name in names], dim=1)
        first_BLW = features.text_tokens(names[0])[:, 0]
        ids_BL = features.batch.captions[names[0]][:, 0]
        seen_BL = torch.cumsum(ids_BL == END, dim=1) - (ids_BL == END).long() == 0
        patches_BPW = features.model.vision.patches(features.vision["global"][:, 0])
        return {
            "global_views": views_BVD[:, : features.vision["global"].shape[1]],
            "all_texts": texts_BKD,
            "images_with_text": self.text_pooling(views_BVD, first_BLW[:, : ids_BL.shape[1]], seen_BL),
            "texts_with_image": self.image_pooling(texts_BKD, patches_BPW),
            "teacher_views": agnostic_views(features.teacher, features.teacher_views).detach().transpose(0, 1),
            "teacher_texts": features.teacher_texts(names[0]),
        }

    def forward(self, features, totals: Totals) -> Terms:
        scale, distillation_scale = features.model.logit_scale(), self.logit_scale()

        def contrast(images: str, texts: str, scale: Tensor) -> Tensor:
            own, everywhere = features.own, features.everywhere
            return pairwise_contrast(
                own[images], own[texts], everywhere[images], everywhere[texts], features.place_B, scale
            )

        students, teachers = ("images_with_text", "texts_with_image"), ("teacher_views", "teacher_texts")
        distilled = [contrast(student, teacher, distillation_scale) for student in students for teacher in teachers]
        loss = sum(distilled) / len(distilled)
        if self.settings.contrast:
            loss = loss + self.settings.contrast * contrast("global_views", "all_texts", scale)
        return Terms(
            loss / totals["present"],
            {"logit_scale": scale.detach(), "distillation_scale": distillation_scale.detach()},
        )
