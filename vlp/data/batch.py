"""What the loader hands to the objective graph.

Shapes: B images, K captions per image, L token ids, R prompts, b images with views, G global and V local views.
"""

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_tensor

from vlp.data.captions import CaptionRequest
from vlp.data.prompts import TaskRequest
from vlp.data.tokens import PAD


@dataclass(frozen=True)
class DataNeeds:
    """What the objectives of a recipe read of a sample; nothing else is decoded, cropped or tokenised."""

    images: bool = False
    captions: tuple[CaptionRequest, ...] = ()
    tasks: tuple[TaskRequest, ...] = ()
    view_share: float = 0.0

    def __or__(self, other: "DataNeeds") -> "DataNeeds":
        return DataNeeds(
            images=self.images or other.images,
            captions=tuple(dict.fromkeys(self.captions + other.captions)),
            tasks=tuple(dict.fromkeys(self.tasks + other.tasks)),
            view_share=max(self.view_share, other.view_share),
        )


@dataclass
class Prompts:
    """Prompts of one task: ids_RL (start, prompt, answer, end, padding), where each answer starts, whose image, and
    whether the decoder sees none of the answer (bool)."""

    ids_RL: Tensor
    answer_start_R: Tensor
    rows_R: Tensor
    parallel_R: Tensor | None = None

    def __post_init__(self) -> None:
        if self.parallel_R is None:
            self.parallel_R = torch.zeros_like(self.rows_R, dtype=torch.bool)


@dataclass
class Batch:
    """One rank's micro-batch. `index_B` numbers the images within the whole global batch, whatever the split."""

    index_B: Tensor
    images_B3HW: Tensor | None = None
    captions: dict[str, Tensor] = field(default_factory=dict)
    prompts: dict[str, Prompts] = field(default_factory=dict)
    view_rows_b: Tensor | None = None
    global_views_bG3HW: Tensor | None = None
    local_views_bV3HW: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index_B)

    def to(self, device: torch.device) -> "Batch":
        """Every tensor on `device`; pictures stay uint8."""
        return _map(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return _map(self, Tensor.pin_memory)


def _map(part, function):
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, dict):
        return {key: _map(value, function) for key, value in part.items()}
    if isinstance(part, (Batch, Prompts)):
        return replace(part, **{f.name: _map(getattr(part, f.name), function) for f in fields(part)})
    return part


def join_ids(parts: list[Tensor]) -> Tensor:
    """Token ids of different lengths, [..., L_i] each, concatenated along the first dimension."""
    length = max(part.shape[-1] for part in parts)
    return torch.cat([pad_tensor(part, (0, length - part.shape[-1]), value=PAD) for part in parts])


def join(batches: list[Batch]) -> Batch:
    """Concatenate batches that were made for the same needs."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    offsets = [sum(map(len, batches[:i])) for i in range(len(batches))]

    def cat(name: str, shift: bool = False) -> Tensor | None:
        if getattr(first, name) is None:
            return None
        return torch.cat(
            [getattr(b, name) + (offset if shift else 0) for b, offset in zip(batches, offsets, strict=True)]
        )

    return Batch(
        index_B=cat("index_B"),
        images_B3HW=cat("images_B3HW"),
        captions={name: join_ids([batch.captions[name] for batch in batches]) for name in first.captions},
        prompts={
            task: Prompts(
                ids_RL=join_ids([batch.prompts[task].ids_RL for batch in batches]),
                answer_start_R=torch.cat([batch.prompts[task].answer_start_R for batch in batches]),
                rows_R=torch.cat(
                    [batch.prompts[task].rows_R + offset for batch, offset in zip(batches, offsets, strict=True)]
                ),
                parallel_R=torch.cat([batch.prompts[task].parallel_R for batch in batches]),
            )
            for task in first.prompts
        },
        view_rows_b=cat("view_rows_b", shift=True),
        global_views_bG3HW=cat("global_views_bG3HW"),
        local_views_bV3HW=cat("local_views_bV3HW"),
    )
