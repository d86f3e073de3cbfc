"""Decoding: captions, boxes, phrases and answers from the patch tokens [docs/method.md 3, Decoder].

Shapes: R prompts, L token ids, A answer tokens.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vlp.data.batch import Batch, DataNeeds, Prompts, TaskRequest
from vlp.data.prompts import TASK_FIELDS, Task
from vlp.data.tokens import END
from vlp.objectives.interface import Needs, Objective, Terms, Totals
from vlp.settings import ObjectiveSettings, Share


def answer_tokens(prompts: Prompts) -> Tensor:
    """bool [R, L]: the ids to predict, from the answer's first id to the end token; prompt and padding are false."""
    ids_RL = prompts.ids_RL
    position_L = torch.arange(ids_RL.shape[1], device=ids_RL.device)
    before_padding = torch.cumsum(ids_RL == END, dim=1) - (ids_RL == END).long() == 0
    return (position_L >= prompts.answer_start_R[:, None]) & before_padding


class Decoding(Objective):
    """NLL of one task's answers, averaged over the answer tokens (end token included) of the global batch."""

    class Settings(ObjectiveSettings):
        type: Literal["decoding"]
        task: Task
        share: Share = Field(1.0, description="share of the images that get a prompt of this task in a step")

    @classmethod
    def check(cls, recipe, settings: Settings) -> None:
        if recipe.model.decoder is None:
            raise ValueError("decoding reads model.decoder, which is null; remove that line")
        field = TASK_FIELDS[settings.task]
        if getattr(recipe.data.fields, field) is None:
            raise ValueError(
                f"task {settings.task} reads data.fields.{field}, which is null; name the key that holds it"
            )

    @classmethod
    def needs(cls, recipe, settings: Settings) -> Needs:
        return Needs(
            DataNeeds(images=True, tasks=(TaskRequest(settings.task, settings.share),)),
            modules=frozenset({"image_projection", "patch_projection", "text", "decoder"}),
        )

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"present": answer_tokens(batch.prompts[self.settings.task]).sum()}

    def forward(self, features, totals: Totals) -> Terms:
        losses_A = features.answer_losses[self.settings.task]
        return Terms(losses_A.sum() / totals["present"].clamp(min=1))
