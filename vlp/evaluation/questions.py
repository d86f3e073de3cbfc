"""Question retrieval: find the pictures that answer a question among its pool [docs/method.md 5, RetVQA; C30].

Shapes: Q questions, N pairs of a question and a picture of its pool.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.errors import UserError
from vlp.evaluation.encode import Subject, ValidationSample, read_table
from vlp.evaluation.scoring import pair_scores

LAYOUT = (
    'a JSON list of {"question": "...", "q_type": "count", "pos_imgs": [KEY, ...], "neg_imgs": [KEY, ...]}, '
    "each KEY that of a validation sample"
)


@dataclass(frozen=True)
class Question:
    """A question and the pool it searches: the samples' numbers, ascending, and which of them are positive."""

    text: str
    kind: str
    images: Tensor
    positive: Tensor


def evaluate_questions(subject: Subject) -> dict[str, dict[str, float] | int]:
    """`{scoring: {kind: percent}}` with the unweighted mean over kinds as `mean`.

    `chance` is what random scores reach, `questions` the number asked. A picture that is not among the evaluated
    samples is left out of its pools, and `left_out` counts these; a question without a positive or without a
    negative is not asked.
    """
    subject.require("questions", "image_projection", "text")
    entries = read_table(subject.recipe, "questions", LAYOUT)
    questions, left_out = make_questions(entries, subject.samples)
    if not questions:
        raise UserError(f"questions: no question has a pool among the {len(subject.samples)} samples; {LAYOUT}")
    image_N = torch.cat([question.images for question in questions])
    sizes = [len(question.images) for question in questions]
    text_N = torch.arange(len(questions)).repeat_interleave(torch.tensor(sizes))
    texts_QD = subject.encode_texts([question.text for question in questions])
    recalls = {
        name: [recall_at_2(s, q.positive) for s, q in zip(scores_N.split(sizes), questions, strict=True)]
        for name, scores_N in pair_scores(subject, texts_QD, image_N, text_N).items()
    }
    recalls["chance"] = [chance(question.positive) for question in questions]
    kinds = [question.kind for question in questions]
    metrics = {name: by_kind(values, kinds) for name, values in recalls.items()}
    return metrics | {"questions": len(questions), "left_out": left_out}


def make_questions(entries: object, samples: list[ValidationSample]) -> tuple[list[Question], int]:
    """The questions that can be asked of `samples`, and how many pool pictures are not among them.

    Raises:
        UserError: for an entry without the keys of `LAYOUT`.
    """
    number = {sample.key: i for i, sample in enumerate(samples)}
    questions, left_out = [], 0
    try:
        for entry in entries:
            positives, negatives = ({str(key) for key in entry[name]} for name in ("pos_imgs", "neg_imgs"))
            pool = positives | negatives
            found = sorted(number[key] for key in pool if key in number)
            left_out += len(pool) - len(found)
            positive = torch.tensor([samples[i].key in positives for i in found], dtype=torch.bool)
            if positive.any() and not positive.all():
                question = Question(entry["question"], str(entry["q_type"]).lower(), torch.tensor(found), positive)
                questions.append(question)
    except (KeyError, TypeError) as error:
        raise UserError(f"questions: an entry is not of the expected form ({error!r}); it is {LAYOUT}") from None
    return questions, left_out


def recall_at_2(scores_N: Tensor, positive_N: Tensor) -> float:
    """|top2 and positives| / min(2, |positives|) for one pool. Ties go by index, so the pool must not be sorted by
    what is positive; a score that is not a number comes last."""
    first = scores_N.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)[:2]
    return positive_N[first].sum().item() / min(2, positive_N.sum().item())


def chance(positive_N: Tensor) -> float:
    """The expected `recall_at_2` of random scores."""
    size, positives = len(positive_N), positive_N.sum().item()
    return min(2, size) * positives / size / min(2, positives)


def by_kind(values: list[float], kinds: list[str]) -> dict[str, float]:
    """Percent for each kind, in the order of their first question, and the unweighted `mean` over kinds."""
    groups = defaultdict(list)
    for value, kind in zip(values, kinds, strict=True):
        groups[kind].append(value)
    means = {kind: 100 * sum(group) / len(group) for kind, group in groups.items()}
    return means | {"mean": sum(means.values()) / len(means)}
