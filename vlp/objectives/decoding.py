"""Decoding: captions, boxes, phrases and answers from the patch tokens [docs/method.md 3, Decoder; 4, CoCa, LocCa].

Shapes: R prompts, L token ids, A answer tokens.
"""

from string import Formatter
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vlp.data.batch import Batch, DataNeeds, Prompts
from vlp.data.prompts import PARTS, Task, TaskRequest
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
        prompt: str | None = Field(None, description="template of what is given; null is GoldiCLIP's wording (C19)")
        answer: str | None = Field(None, description="template of what is to be predicted")
        captions: Literal["raw", "short", "long", "any"] = Field("short", description="what {caption} is drawn from")
        parallel: float = Field(0.0, ge=0, le=1, description="share predicted at once, seeing no answer token (LocCa)")

        @property
        def request(self) -> TaskRequest:
            return TaskRequest(self.task, self.share, self.prompt, self.answer, self.captions, self.parallel)

    @classmethod
    def check(cls, recipe, settings: Settings) -> None:
        decoder, request = recipe.model.decoder, settings.request
        if decoder is None:
            raise ValueError("decoding reads model.decoder, which is null; remove that line")
        if getattr(recipe.data.fields, request.field) is None:
            raise ValueError(
                f"task {settings.task} reads data.fields.{request.field}, which is null; name the key that holds it"
            )
        if settings.parallel and decoder.input != "tokens":
            raise ValueError(
                "parallel hides the answer from the decoder, which reads the text tower; set model.decoder.input=tokens"
            )
        for key, template in zip(("prompt", "answer"), request.templates, strict=True):
            _check_template(key, template, PARTS[settings.task])

    @classmethod
    def needs(cls, recipe, settings: Settings) -> Needs:
        pooling = recipe.model.pooling
        modules = {"decoder", "patch_projection"}
        if recipe.model.decoder.input == "text_tower":
            modules.add("text")
        if pooling is not None and pooling.projection == "shared":
            modules.add("image_projection")
        return Needs(DataNeeds(images=True, tasks=(settings.request,)), modules=frozenset(modules))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"present": answer_tokens(batch.prompts[self.settings.request.name]).sum()}

    def forward(self, features, totals: Totals) -> Terms:
        losses_A = features.answer_losses[self.settings.request.name]
        return Terms(losses_A.sum() / totals["present"].clamp(min=1))


def _check_template(key: str, template: str, parts: tuple[str, ...]) -> None:
    allowed = " and ".join(f"{{{part}}}" for part in parts)
    try:
        fields = [field[1:] for field in Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise ValueError(f"{key}: given '{template}', which is no template ({error}); it may hold {allowed}") from None
    plain = {(part, "", None) for part in parts}  # no format, no conversion
    if not set(fields) <= plain or (key == "answer" and not fields):
        raise ValueError(f"{key}: given '{template}'; a template of this task holds {allowed}")
