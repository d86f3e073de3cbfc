"""Image-text retrieval: R@1/5/10 both ways [docs/method.md 5, R@k; C28].

Shapes: B images, T texts.
"""

import torch
from torch import Tensor

from vlp.errors import UserError
from vlp.evaluation.encode import Subject
from vlp.evaluation.scoring import all_scores

RECALL_AT = (1, 5, 10)


def evaluate_retrieval(subject: Subject) -> dict[str, dict[str, dict[str, float]]]:
    """`{kind of caption: {scoring: {metric: percent}}}` for the kinds that the samples have."""
    subject.require("retrieval", "image_projection", "text")
    kinds, result = subject.recipe.evaluation.captions, {}
    for kind in kinds:
        texts = [text for sample in subject.samples for text in sample.captions[kind]]
        image_T = torch.tensor([i for i, sample in enumerate(subject.samples) for _ in sample.captions[kind]])
        if texts:
            scores = all_scores(subject, subject.encode_texts(texts))
            result[kind] = {name: retrieval_metrics(scores_BT, image_T) for name, scores_BT in scores.items()}
    if not result:
        raise UserError(
            f"retrieval: the validation samples have no {' or '.join(kinds)} caption; set evaluation.captions to a "
            "kind that they have, or data.fields to where it is"
        )
    return result


def ranks(scores: Tensor, own: Tensor) -> Tensor:
    """int64 [N]: the place of `own[n]` in row n of `scores` [N, M]: how many score strictly more, ties by index.

    A score that is not a number loses to every other one.
    """
    own_score = scores.gather(1, own[:, None])
    index = torch.arange(scores.shape[1])
    return (~(scores <= own_score) | ((scores == own_score) & (index < own[:, None]))).sum(1)


def retrieval_metrics(scores_BT: Tensor, image_T: Tensor) -> dict[str, float]:
    """Percent. `text_to_image_rK`: texts whose image is among the first K; `image_to_text_rK`: of the images that
    have texts, those with one of them among the first K.

    Args:
        scores_BT: any scores, larger is more alike.
        image_T: int64, the image of each text.
    """
    text_ranks_T = ranks(scores_BT.T, image_T)
    pair_ranks_T = ranks(scores_BT[image_T], torch.arange(len(image_T)))
    image_ranks_B = torch.full((len(scores_BT),), len(image_T)).scatter_reduce(0, image_T, pair_ranks_T, "amin")
    with_texts_B = image_T.bincount(minlength=len(scores_BT)) > 0
    return {
        f"{name}_r{k}": 100 * (found < k).double().mean().item()
        for name, found in (("text_to_image", text_ranks_T), ("image_to_text", image_ranks_B[with_texts_B]))
        for k in RECALL_AT
    }
