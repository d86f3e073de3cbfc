"""Image-text retrieval: R@1/5/10 both ways [METHOD.md 5, R@k; C28].

Shapes: B images, T texts.
"""

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)


def ranks(scores: Tensor, own: Tensor) -> Tensor:
    """int64 [N]: the place of `own[n]` in row n of `scores` [N, M]: how many score strictly more, ties by index."""
    own_score = scores.gather(1, own[:, None])
    index = torch.arange(scores.shape[1])
    return ((scores > own_score) | ((scores == own_score) & (index < own[:, None]))).sum(1)


def retrieval_metrics(scores_BT: Tensor, image_T: Tensor) -> dict[str, float]:
    """Percent. `text_to_image_rK`: texts whose image is among the first K; `image_to_text_rK`: images with one of
    their texts among the first K.

    Args:
        scores_BT: any scores, larger is more alike.
        image_T: int64, the image of each text.
    """
    text_ranks_T = ranks(scores_BT.T, image_T)
    pair_ranks_T = ranks(scores_BT[image_T], torch.arange(len(image_T)))
    image_ranks_B = torch.full((len(scores_BT),), len(image_T)).scatter_reduce(0, image_T, pair_ranks_T, "amin")
    return {
        f"{name}_r{k}": 100 * (found < k).double().mean().item()
        for name, found in (("text_to_image", text_ranks_T), ("image_to_text", image_ranks_B))
        for k in RECALL_AT
    }
