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
    def vision(self) -> dict[str, Tensor]:
        """Tokens of the clean view [B, 1, N, W] and of global and local views, of those that the recipe reads."""
        batch, tower = self.batch, self.model.vision
        views = {"global": batch.global_views_bG3HW, "local": batch.local_views_bV3HW}
        if batch.images_B3HW is None:
            return encode_pictures(self.model, views)
        if not tower.patch_dropout:
            return encode_pictures(self.model, {"clean": batch.images_B3HW[:, None]} | views)
        kept_BP = draw_patches(self.seed, self.step, batch.index_B, *tower.kept_of(batch.images_B3HW))
        return {"clean": tower(batch.images_B3HW, kept_BP)[:, None]} | encode_pictures(self.model, views)

    @property
    def image_tokens(self) -> Tensor:
        """[B, N, W] all tokens of the clean view, after the last norm."""
        return self.vision["clean"][:, 0]

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
        return [self.vision[name] for name in ("global", "local") if name in self.vision]

    @cached_property
    def teacher_views(self) -> list[Tensor]:
        """The teacher's tokens of the global views."""
        with torch.no_grad():
            return list(encode_pictures(self.teacher, {"global": self.batch.global_views_bG3HW}).values())

    def masked_tokens(self, places_bM: Tensor) -> Tensor:
        """[b, N, W] the student's tokens of the first global view, the mask token standing at these patches."""
        first_b3HW = self.batch.global_views_bG3HW[:, 0]
        if not len(first_b3HW):  # a black picture, so that every rank runs the tower
            first_b3HW, places_bM = first_b3HW.new_zeros(1, *first_b3HW.shape[1:]), places_bM.new_zeros(1, 1)
        tokens = self.model.vision(first_b3HW, masked=(places_bM, self.model.mask_token()))
        return tokens[: len(self.batch.view_rows_b)]

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
    def _text(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Embeddings [B, K, D] and tokens [B, K, L, W] by request, and the tokens [R, L, W] of all prompts: one pass
        of the text tower."""
        captions = [self.batch.captions[name] for name in self._requests]
        prompts = [] if self._decoder_reads_tokens else [prompts.ids_RL for prompts in self._prompts.values()]
        ids = join_ids([*(ids.flatten(0, 1) for ids in captions), *prompts])
        tokens_TLW, embeds_TD = self.model.text(ids)
        sizes = [ids.shape[0] * ids.shape[1] for ids in captions]
        embeds, tokens = (
            {
                name: part.unflatten(0, ids.shape[:2])
                for name, part, ids in zip(self._requests, x[: sum(sizes)].split(sizes), captions, strict=True)
            }
            for x in (embeds_TD, tokens_TLW)
        )
        return embeds, tokens, tokens_TLW[sum(sizes) :]

    def texts(self, name: str) -> Tensor:
        """[B, K, D] embeddings of a caption request."""
        return self._text[0][name]

    def text_tokens(self, name: str) -> Tensor:
        """[B, K, L, W] the text tower's tokens of a caption request."""
        return self._text[1][name]

    def teacher_texts(self, name: str) -> Tensor:
        """[B, K, D] the teacher's embeddings of a caption request."""
        ids_BKL = self.batch.captions[name]
        with torch.no_grad():
            return self.teacher.text(ids_BKL.flatten(0, 1))[1].unflatten(0, ids_BKL.shape[:2])

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
        text_RLW = None if self._decoder_reads_tokens else self._text[2][:, : answers_RL.shape[1]]
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


def encode_pictures(model: VisionLanguageModel, parts: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Pictures [n, views, 3, H, W] to tokens [n, views, N, W], of the parts that are there: one pass of the vision
    tower per picture size. A size without any picture gets a black one, whose tokens nobody reads, so that every rank
    runs the tower."""
    there = {name: part for name, part in parts.items() if part is not None and part.shape[1]}
    tokens: dict[str, Tensor] = {}
    for size in dict.fromkeys(part.shape[-1] for part in there.values()):
        same = {name: part.flatten(0, 1) for name, part in there.items() if part.shape[-1] == size}
        pictures = torch.cat(list(same.values()))
        encoded = model.vision(pictures if len(pictures) else pictures.new_zeros(1, *pictures.shape[1:]))
        pieces = encoded[: len(pictures)].split([len(part) for part in same.values()])
        tokens |= dict(zip(same, pieces, strict=True))
    return {name: tokens[name].unflatten(0, part.shape[:2]) for name, part in there.items()}


def _placeholder(prompts: Prompts) -> Prompts:
    """One prompt of one answer token about the first image; its loss is multiplied by zero."""
    ids = prompts.ids_RL.new_zeros(1, 8)
    ids[0, :2] = torch.tensor([START, END])
    return Prompts(
        ids, prompts.answer_start_R.new_ones(1), prompts.rows_R.new_zeros(1), prompts.parallel_R.new_zeros(1)
    )
