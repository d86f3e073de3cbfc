"""Classification of the caption's own tokens under IDF weights: SuperCLIP [docs/method.md 1].

Shapes: B images, K captions per image, L token ids, W width of the vision tower, V vocabulary.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from vlp.data.batch import Batch, DataNeeds
from vlp.data.tokens import END, START, VOCABULARY
from vlp.models.model import VisionLanguageModel
from vlp.objectives.interface import CaptionSettings, Needs, Objective, Terms, Totals
from vlp.precision import full


def caption_tokens(ids: Tensor) -> Tensor:
    """bool like `ids` [..., L]: the first occurrence of each id strictly between start and end token (C1)."""
    inside = (ids != START) & (torch.cumsum(ids == END, dim=-1) == 0)
    earlier = torch.ones(ids.shape[-1], ids.shape[-1], dtype=torch.bool, device=ids.device).tril(-1)
    repeated = ((ids.unsqueeze(-1) == ids.unsqueeze(-2)) & inside.unsqueeze(-2) & earlier).any(-1)
    return inside & ~repeated


def document_frequency(ids: Tensor) -> Tensor:
    """int64 [V]: in how many of the captions [..., L] each id occurs."""
    return torch.bincount(ids[caption_tokens(ids)], minlength=VOCABULARY)


def running_idf(frequency_V: Tensor, documents: Tensor) -> Tensor:
    """float32 [V] w_c = log((n + eps) / (f_c + eps)) with n and f in batches and eps = 1 / batch (C4); in documents
    that is log((N + 1) / (df_c + 1)). Zero for a token that every caption has."""
    return torch.log((documents + 1).double() / (frequency_V + 1).double()).float()


def static_idf(frequency_V: Tensor, documents: Tensor) -> Tensor:
    """float32 [V] w_c = max(0, log(N / (1 + df_c))) (C3)."""
    return torch.log(documents.double() / (frequency_V + 1).double()).clamp(min=0).float()


def classification_loss(logits_BV: Tensor, ids_BKL: Tensor, idf_V: Tensor) -> Tensor:
    """Sum over captions of -sum_c y_c log softmax(logits)_c, y the caption's tokens weighted by IDF and normalised.

    Written as logsumexp(logits) - sum_c y_c logits_c, so that the dense targets [B, K, V] never exist. A caption
    whose tokens all have weight zero, or that has none, adds nothing (C2). float32 scalar.
    """
    logits_BV = full(logits_BV)
    weights_BKL = (caption_tokens(ids_BKL) * idf_V[ids_BKL]).to(logits_BV.dtype)
    mass_BK = weights_BKL.sum(-1)
    targets_BKL = weights_BKL / mass_BK.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    chosen_BKL = logits_BV.gather(1, ids_BKL.flatten(1)).view(ids_BKL.shape)
    loss_BK = logits_BV.logsumexp(-1, keepdim=True) - (targets_BKL * chosen_BKL).sum(-1)
    return (loss_BK * (mass_BK > 0)).sum()


class TokenClassification(Objective):
    """L_cls = mean over captions with targets; x = W LN(z) + b, z the mean of the patch tokens before projection."""

    class Settings(CaptionSettings):
        type: Literal["token_classification"]
        idf: Literal["running", "static", "none"] = "running"
        idf_file: str | None = Field(None, description="statistics.safetensors of tools/prepare_statistics.py")

    def __init__(self, recipe, settings: Settings, model: VisionLanguageModel):
        super().__init__(recipe, settings, model)
        width = model.vision.width
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)
        nn.init.normal_(self.head.weight, std=width**-0.5)
        nn.init.zeros_(self.head.bias)
        statistics = load_file(settings.idf_file) if settings.idf == "static" else {}
        self.register_buffer("frequency_V", statistics.get("frequency", torch.zeros(VOCABULARY, dtype=torch.int64)))
        self.register_buffer("documents", statistics.get("documents", torch.zeros(1, dtype=torch.int64)))

    @classmethod
    def check(cls, recipe, settings: Settings) -> None:
        if settings.idf != "static":
            return
        if settings.idf_file is None:
            raise ValueError(
                "idf: static reads document frequencies; give idf_file=DIR/statistics.safetensors, which "
                "tools/prepare_statistics.py writes, or set idf to running or none"
            )
        if not Path(settings.idf_file).is_file():
            raise ValueError(f"idf_file: {settings.idf_file} does not exist; tools/prepare_statistics.py makes it")

    @classmethod
    def needs(cls, recipe, settings: Settings) -> Needs:
        return Needs(DataNeeds(images=True, captions=(settings.request,)))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        ids = batch.captions[self.settings.request.name]
        counts = {"present": caption_tokens(ids).any(-1).sum(), "documents": torch.tensor(ids[..., 0].numel())}
        return counts | ({"frequency": document_frequency(ids)} if self.settings.idf == "running" else {})

    def begin_step(self, totals: Totals) -> None:
        """The running counts take in the whole global batch before its first use; frozen in evaluation."""
        if self.settings.idf == "running" and self.training:
            self.frequency_V += totals["frequency"]
            self.documents += totals["documents"]

    def idf(self) -> Tensor:
        """float32 [V] the weights now."""
        if self.settings.idf == "none":
            return torch.ones_like(self.frequency_V, dtype=torch.float32)
        weigh = running_idf if self.settings.idf == "running" else static_idf
        return weigh(self.frequency_V, self.documents)

    def forward(self, features, totals: Totals) -> Terms:
        pooled_BW = features.model.vision.patches(features.image_tokens).mean(1)
        logits_BV = self.head(self.norm(pooled_BW))
        loss = classification_loss(logits_BV, features.batch.captions[self.settings.request.name], self.idf())
        return Terms(loss / totals["present"].clamp(min=1))
