"""Random choices that depend on what they are about, not on who makes them.

A draw is a hash of (seed, step, image, other image), so no split of the batch over ranks, workers or micro-batches
changes it, and a second pass repeats it [docs/method.md 6].
"""

import torch
from torch import Tensor

_MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # of splitmix64, as int64


def hash_pairs(seed: int, step: int, first: Tensor, second: Tensor) -> Tensor:
    """int64 in [0, 2^62): independent-looking numbers for the broadcast pairs of `first` and `second` (int64)."""
    return _mix(_mix(_mix(first + 1) + second + seed * 1_000_003) + step) & ((1 << 62) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser; the products wrap around, right shifts are made logical by masking."""
    x = x + _MULTIPLIERS[0]
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MULTIPLIERS[1]
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MULTIPLIERS[2]
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def draw_caption(seed: int, step: int, images_B: Tensor, others_G: Tensor, captions: int) -> Tensor:
    """int64 [B, G] in [0, captions): which of its captions each other image shows to each image."""
    return hash_pairs(seed, step, images_B[:, None], others_G[None, :]) % captions


def draw_others(seed: int, step: int, images_B: Tensor, all_G: Tensor, count: int) -> Tensor:
    """int64 [B, count] places in `all_G`: for each image that many different other images, all others if fewer."""
    priority_BG = hash_pairs(seed + 1, step, images_B[:, None], all_G[None, :])
    priority_BG = priority_BG.masked_fill(images_B[:, None] == all_G[None, :], -1)
    return priority_BG.topk(min(count, len(all_G) - 1), dim=1).indices


def draw_patches(seed: int, step: int, images_B: Tensor, patches: int, count: int) -> Tensor:
    """int64 [B, count] ascending: for each image that many different ones of its patches."""
    priority_BP = hash_pairs(seed + 2, step, images_B[:, None], torch.arange(patches, device=images_B.device)[None, :])
    return priority_BP.topk(count, dim=1).indices.sort(dim=1).values
