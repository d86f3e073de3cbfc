"""The loss of a global batch from uneven parts of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlp.objectives.features import Features
from vlp.objectives.interface import Objective


def uneven_parts(images: int) -> list[list[int]]:
    """The images in another order, in up to three parts of different sizes."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(images)).tolist()
    return [part for part in (order[:1], order[1:3], order[3:]) if part]


def summed_shares(objective: Objective, parts: Sequence[Features]) -> Tensor:
    """What the parts' shares add up to. Each part knows the counts of all, and what the others share."""
    counts = [objective.counts(part.batch) for part in parts]
    totals = {key: sum(count[key] for count in counts) for key in counts[0]}
    objective.begin_step(totals)
    shared = [{"index": part.batch.index_B} | objective.shared(part) for part in parts]
    everywhere = {name: torch.cat([own[name] for own in shared]) for name in shared[0]}
    for part, own in zip(parts, shared, strict=True):
        part.share(own, everywhere)
    return sum(objective(part, totals).loss for part in parts)
