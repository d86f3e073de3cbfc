"""Scores of images against texts: text-agnostic cosines, and text-conditioned ones over all pairs.

Shapes: B images, T texts, P patches, D joint width.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from vlp.models.pooling import TextConditionedPooling


def agnostic_scores(images_BD: Tensor, texts_TD: Tensor) -> Tensor:
    """[B, T] cos(v_g(i), t_j)."""
    return normalize(images_BD, dim=-1) @ normalize(texts_TD, dim=-1).T


@torch.inference_mode()
def conditioned_scores(
    pooling: TextConditionedPooling, patches_BPD: Tensor, texts_TD: Tensor, chunk: int = 65_536
) -> Tensor:
    """[B, T] cos(v_tc(i | t_j), t_j) for all pairs, `chunk` pairs at a time. The scale does not change ranks."""
    device = pooling.query.weight.device
    texts_TD = texts_TD.to(device)
    queries_1TD = pooling.queries(texts_TD)[None]
    images = max(1, chunk // len(texts_TD))
    scores = []
    for patches_bPD in patches_BPD.split(images):
        found_bTD = pooling.attend(queries_1TD, pooling.keys_values(patches_bPD.to(device)))
        scores.append(cosine_similarity(pooling.output(found_bTD), texts_TD, dim=-1).float().cpu())
    return torch.cat(scores)
