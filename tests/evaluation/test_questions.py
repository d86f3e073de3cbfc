"""Question retrieval: R@2 against a naive twin, its chance against all orders, pools, and the whole task."""

import json
from itertools import permutations
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from vlp.errors import UserError
from vlp.evaluation.encode import Subject, ValidationSample
from vlp.evaluation.questions import by_kind, chance, evaluate_questions, make_questions, recall_at_2
from vlp.evaluation.scoring import all_scores

PIXELS = np.zeros((3, 8, 8), np.uint8)
SAMPLES = [ValidationSample(f"k{i}", PIXELS, {}, {}) for i in range(6)]


def naive_recall(scores: list[float], positive: list[bool]) -> float:
    first = sorted(range(len(scores)), key=lambda i: -scores[i])[:2]
    return sum(positive[i] for i in first) / min(2, sum(positive))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), min_size=1, max_size=9))
def test_recall_at_2_equals_the_naive_twin_with_ties(pool: list[tuple[float, bool]]) -> None:
    scores, positive = map(list, zip(*pool, strict=True))
    if any(positive):
        assert recall_at_2(torch.tensor(scores), torch.tensor(positive)) == naive_recall(scores, positive)


@pytest.mark.parametrize("positive", [[True], [True, False], [False, True, True], [True, False, False, True, True]])
def test_chance_is_the_mean_over_all_orders(positive: list[bool]) -> None:
    orders = list(permutations(range(len(positive))))
    recalls = [recall_at_2(torch.tensor(order).float(), torch.tensor(positive)) for order in orders]
    assert chance(torch.tensor(positive)) == pytest.approx(sum(recalls) / len(recalls))


def test_a_score_that_is_no_number_comes_last() -> None:
    scores = torch.tensor([float("nan"), float("nan"), 0.0, -1.0])
    assert recall_at_2(scores, torch.tensor([True, True, False, False])) == 0


def test_pools_lie_in_the_samples_order_and_leave_out_unknown_pictures() -> None:
    entry = {"question": "?", "q_type": "Count", "pos_imgs": ["k4", "k1"], "neg_imgs": ["k0", "k5", "other"]}
    only_positive = entry | {"neg_imgs": ["other"]}
    no_positive = entry | {"pos_imgs": ["other"]}
    questions, left_out = make_questions([entry, only_positive, no_positive], SAMPLES)
    assert left_out == 3
    assert len(questions) == 1
    assert questions[0].images.tolist() == [0, 1, 4, 5]
    assert questions[0].positive.tolist() == [False, True, True, False]
    assert questions[0].kind == "count"


@pytest.mark.parametrize("entries", [{"a": 1}, [{"question": "?"}], 5, [{"pos_imgs": 1, "neg_imgs": []}]])
def test_a_file_of_another_form_is_one_line_with_the_layout(entries: object) -> None:
    with pytest.raises(UserError, match=r"expected form.*pos_imgs"):
        make_questions(entries, SAMPLES)


def test_the_mean_is_over_kinds_not_questions() -> None:
    assert by_kind([1, 1, 1, 0], ["count", "count", "count", "shape"]) == {"count": 100, "shape": 0, "mean": 50}


def test_the_task_equals_a_loop_over_questions(subject: Subject, tiny_shards: Path) -> None:
    entries = json.loads((tiny_shards / "questions.json").read_text())
    keys = [sample.key for sample in subject.samples]
    result = evaluate_questions(subject)
    assert result["questions"] == len(entries)
    assert result["left_out"] == 0
    for scoring, scores in all_scores(subject, subject.encode_texts([e["question"] for e in entries])).items():
        recalls: dict[str, list[float]] = {}
        for j, entry in enumerate(entries):
            pool = sorted(keys.index(key) for key in entry["pos_imgs"] + entry["neg_imgs"])
            positive = [keys[i] in entry["pos_imgs"] for i in pool]
            recalls.setdefault(entry["q_type"], []).append(naive_recall([scores[i, j].item() for i in pool], positive))
        expected = {kind: 100 * sum(values) / len(values) for kind, values in recalls.items()}
        expected["mean"] = sum(expected.values()) / len(expected)
        assert result[scoring] == pytest.approx(expected)
