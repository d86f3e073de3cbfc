"""Scores of images against texts: text-agnostic cosines, and text-conditioned ones, over all pairs or chosen ones.

Shapes: B images, T texts, N chosen pairs, P patches, D joint width.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from vlp.evaluation.encode import Subject
from vlp.models.pooling import TextConditionedPooling


def all_scores(subject: Subject, texts_TD: Tensor) -> dict[str, Tensor]:
    """[B, T] by scoring: `agnostic`, and `conditioned` where the student has text-conditioned pooling."""
    scores = {"agnostic": agnostic_scores(subject.images_BD, texts_TD)}
    if hasattr(subject.model, "pooling"):
        scores["conditioned"] = conditioned_scores(subject.model.pooling, subject.patches_BPD, texts_TD)
    return scores


def pair_scores(subject: Subject, texts_TD: Tensor, image_N: Tensor, text_N: Tensor) -> dict[str, Tensor]:
    """[N] by scoring, as `all_scores`, for image `image_N[n]` with text `text_N[n]` only."""
    scores = {"agnostic": cosine_similarity(subject.images_BD[image_N], texts_TD[text_N], dim=-1)}
    if hasattr(subject.model, "pooling"):
        scores["conditioned"] = conditioned_pair_scores(
            subject.model.pooling, subject.patches_BPD, texts_TD, image_N, text_N
        )
    return scores


def agnostic_scores(images_BD: Tensor, texts_TD: Tensor) -> Tensor:
    """[B, T] cos(v_g(i), t_j)."""
    return normalize(images_BD, dim=-1) @ normalize(texts_TD, dim=-1).T


@torch.inference_mode()
def conditioned_scores(
    pooling: TextConditionedPooling, patches_BPD: Tensor, texts_TD: Tensor, chunk: int = 16_384
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


@torch.inference_mode()
def conditioned_pair_scores(
    pooling: TextConditionedPooling, patches_BPD: Tensor, texts_TD: Tensor, image_N: Tensor, text_N: Tensor
) -> Tensor:
    """[N] cos(v_tc(i | t_j), t_j) of the pairs (image_N[n], text_N[n]): each image's patches are projected once."""
    order_N = image_N.argsort(stable=True)
    images, counts = image_N[order_N].unique_consecutive(return_counts=True)
    scores_N = torch.empty(len(image_N))
    for image, pairs in zip(images.tolist(), order_N.split(counts.tolist()), strict=True):
        scores_N[pairs] = conditioned_scores(pooling, patches_BPD[image : image + 1], texts_TD[text_N[pairs]])[0]
    return scores_N
