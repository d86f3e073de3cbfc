"""The features of one micro-batch, each computed once, on first read.

Shapes: B own images, G images of the global batch, K captions per image, b images with views, N tokens, W width of a
tower, P patches, D joint width, R prompts, L token ids, A answer tokens.
"""

from functools import cached_property

import torch
from torch import Tensor

from vlp.data.batch import Batch, Prompts, join_ids
from vlp.data.tokens import END, START
from vlp.engine.distributed import gather
from vlp.models.model import VisionLanguageModel
from vlp.objectives.decoding import answer_tokens
from vlp.objectives.drawing import draw_patches


class Features:
    """What objectives read. One pass of the vision tower per picture size, one pass of the text tower in all."""

    def __init__(
        self,
        model: VisionLanguageModel,
        teacher: VisionLanguageModel | None,
        batch: Batch,
        texts: frozenset[str],
        seed: int,
        step: int,
    ):
        self.model, self.teacher, self.batch = model, teacher, batch
        self.seed, self.step = seed, step
        self._requests = sorted(texts)
        self.own: dict[str, Tensor] = {}
        self.everywhere: dict[str, Tensor] = {}

    # ---- images -------------------------------------------------------------------------------------------------

    @cached_property
    def _vision(self) -> list[Tensor]:
        """Tokens of the clean view [B, 1, N, W], then of global and local views where the recipe has them."""
        batch, vision = self.batch, self.model.vision
        views = [] if batch.global_views_bG3HW is None else [batch.global_views_bG3HW, batch.local_views_bV3HW]
        if not vision.patch_dropout:
            return encode_pictures(self.model, [batch.images_B3HW[:, None], *views])
        patches = vision.patches_of(batch.images_B3HW)
        kept = max(1, round(patches * (1 - vision.patch_dropout)))
        kept_BP = draw_patches(self.seed, self.step, batch.index_B, patches, kept)
        return [vision(batch.images_B3HW, kept_BP)[:, None], *encode_pictures(self.model, views)]

    @property
    def image_tokens(self) -> Tensor:
        """[B, N, W] all tokens of the clean view, after the last norm."""
        return self._vision[0][:, 0]

    @cached_property
    def image_embeds(self) -> Tensor:
        """[B, D] text-agnostic embeddings v_g."""
        return self.model.image_embeds(self.image_tokens)

    @cached_property
    def patch_embeds(self) -> Tensor:
        """[B, P, D] projected patch tokens v_loc."""
        return self.model.patch_embeds(self.image_tokens)

    @property
    def student_views(self) -> list[Tensor]:
        """The student's tokens of global, then local views: [b, views, N, W] each."""
        return [tokens for tokens in self._vision[1:] if tokens is not None]

    @cached_property
    def teacher_views(self) -> list[Tensor]:
        """The teacher's tokens of the global views."""
        with torch.no_grad():
            return encode_pictures(self.teacher, [self.batch.global_views_bG3HW])

    # ---- texts --------------------------------------------------------------------------------------------------

    @cached_property
    def _prompts(self) -> dict[str, Prompts]:
        """The prompts by task. A task that has none in this micro-batch gets an empty one, so that every rank runs
        text tower and decoder in every step."""
        return {
            task: prompts if len(prompts.rows_R) else _placeholder(prompts)
            for task, prompts in self.batch.prompts.items()
        }

    @cached_property
    def _text(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """Embeddings [B, K, D] by request, and the tokens [R, L, W] of all prompts: one pass of the text tower."""
        captions = [self.batch.captions[name] for name in self._requests]
        prompts = [] if self._decoder_reads_tokens else [prompts.ids_RL for prompts in self._prompts.values()]
        ids = join_ids([*(ids.flatten(0, 1) for ids in captions), *prompts])
        tokens_TLW, embeds_TD = self.model.text(ids)
        sizes = [ids.shape[0] * ids.shape[1] for ids in captions]
        parts = embeds_TD[: sum(sizes)].split(sizes)
        embeds = {
            name: part.unflatten(0, ids.shape[:2])
            for name, part, ids in zip(self._requests, parts, captions, strict=True)
        }
        return embeds, tokens_TLW[sum(sizes) :]

    def texts(self, name: str) -> Tensor:
        """[B, K, D] embeddings of a caption request."""
        return self._text[0][name]

    @property
    def _decoder_reads_tokens(self) -> bool:
        return hasattr(self.model, "decoder") and self.model.decoder.reads_tokens

    @cached_property
    def answer_losses(self) -> dict[str, Tensor]:
        """float32 [A] NLL of every answer token, by task: one pass of the decoder for all tasks."""
        prompts = list(self._prompts.values())
        joined = Prompts(
            join_ids([part.ids_RL for part in prompts]),
            torch.cat([part.answer_start_R for part in prompts]),
            torch.cat([part.rows_R for part in prompts]),
            torch.cat([part.parallel_R for part in prompts]),
        )
        answers_RL = answer_tokens(joined)
        text_RLW = None if self._decoder_reads_tokens else self._text[1][:, : answers_RL.shape[1]]
        losses_A = self.model.decoder(text_RLW, self.patch_embeds[joined.rows_R], joined, answers_RL)
        counts = answers_RL.sum(1).split([len(part.rows_R) for part in prompts])
        parts = losses_A.split([int(count.sum()) for count in counts])
        return {
            task: part if len(self.batch.prompts[task].rows_R) else part * 0.0
            for task, part in zip(self._prompts, parts, strict=True)
        }

    # ---- the global batch ---------------------------------------------------------------------------------------

    def share(self, own: dict[str, Tensor], everywhere: dict[str, Tensor] | None = None) -> None:
        """Exchange the tensors [B, ...] that the losses of other images read: `everywhere` holds them for all G
        images, in one order, `index` telling whose they are. They are gathered with gradients, or given."""
        self.own = own
        self.everywhere = {name: gather(tensor) for name, tensor in own.items()} if everywhere is None else everywhere

    @cached_property
    def place_B(self) -> Tensor:
        """int64 [B] where the own images stand among all."""
        return (self.batch.index_B[:, None] == self.everywhere["index"]).int().argmax(1)


def encode_pictures(model: VisionLanguageModel, parts: list[Tensor]) -> list[Tensor]:
    """Pictures [n, views, 3, H, W] to tokens [n, views, N, W]: one pass of the vision tower per picture size. A size
    without any picture gets a black one, whose tokens nobody reads, so that every rank runs the tower."""
    tokens: dict[int, Tensor] = {}
    for size in dict.fromkeys(part.shape[-1] for part in parts if part.shape[1]):
        same = {i: part.flatten(0, 1) for i, part in enumerate(parts) if part.shape[-1] == size and part.shape[1]}
        pictures = torch.cat(list(same.values()))
        encoded = model.vision(pictures if len(pictures) else pictures.new_zeros(1, *pictures.shape[1:]))
        pieces = encoded[: len(pictures)].split([len(part) for part in same.values()])
        tokens |= dict(zip(same, pieces, strict=True))
    return [tokens[i].unflatten(0, part.shape[:2]) if i in tokens else None for i, part in enumerate(parts)]


def _placeholder(prompts: Prompts) -> Prompts:
    """One prompt of one answer token about the first image; its loss is multiplied by zero."""
    ids = prompts.ids_RL.new_zeros(1, 8)
    ids[0, :2] = torch.tensor([START, END])
    return Prompts(
        ids, prompts.answer_start_R.new_ones(1), prompts.rows_R.new_zeros(1), prompts.parallel_R.new_zeros(1)
    )
