"""R@k against a naive twin with ties; scores against loops over pairs with torch's own attention."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn.functional import cosine_similarity

from vlp.evaluation.retrieval import RECALL_AT, retrieval_metrics
from vlp.evaluation.scoring import agnostic_scores, conditioned_pair_scores, conditioned_scores
from vlp.models.pooling import TextConditionedPooling


def naive_metrics(scores: list[list[float]], image_of: list[int]) -> dict[str, float]:
    """Sort, look at the first k; equal scores keep their order."""
    images, texts = range(len(scores)), range(len(image_of))
    result = {}
    for k in RECALL_AT:
        found = [image_of[t] in sorted(images, key=lambda i: -scores[i][t])[:k] for t in texts]
        result[f"text_to_image_r{k}"] = 100 * sum(found) / len(found)
        first = {i: sorted(texts, key=lambda t: -scores[i][t])[:k] for i in set(image_of)}
        found = [any(image_of[t] == i for t in first[i]) for i in first]
        result[f"image_to_text_r{k}"] = 100 * sum(found) / len(found)
    return result


@settings(deadline=None)
@given(st.data())
def test_recall_equals_the_naive_twin_with_ties(data: st.DataObject) -> None:
    images, texts = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 14))
    image_of = data.draw(st.lists(st.integers(0, images - 1), min_size=texts, max_size=texts))
    few = st.sampled_from([-0.5, 0.0, 0.25, 1.0])  # many ties
    scores = [data.draw(st.lists(few, min_size=texts, max_size=texts)) for _ in range(images)]
    found = retrieval_metrics(torch.tensor(scores), torch.tensor(image_of))
    assert found == pytest.approx(naive_metrics(scores, image_of), abs=1e-9)


def test_scores_that_are_no_numbers_find_nothing() -> None:
    scores = torch.full((20, 20), float("nan"))
    assert set(retrieval_metrics(scores, torch.arange(20)).values()) == {0.0}


def test_equal_scores_are_chance_and_right_scores_are_100() -> None:
    found = retrieval_metrics(torch.zeros(50, 50), torch.arange(50))
    assert found["text_to_image_r1"] == found["image_to_text_r1"] == pytest.approx(2.0)
    assert set(retrieval_metrics(torch.eye(50), torch.arange(50)).values()) == {100.0}


def attention_of(pooling: TextConditionedPooling, width: int) -> nn.MultiheadAttention:
    """torch's attention with a zero key and value, carrying the pooling's weights."""
    attention = nn.MultiheadAttention(width, pooling.heads, add_zero_attn=True, batch_first=True).double()
    parts = [pooling.query, pooling.key, pooling.value]
    attention.in_proj_weight.data = torch.cat([part.weight for part in parts])
    attention.in_proj_bias.data = torch.cat([part.bias for part in parts])
    attention.out_proj.load_state_dict(pooling.output.state_dict())
    return attention


@pytest.fixture
def pooling() -> TextConditionedPooling:
    torch.manual_seed(0)
    pooling = TextConditionedPooling(24, 3).double()
    for parameter in pooling.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return pooling.requires_grad_(False)


@pytest.mark.parametrize("chunk", [1, 7, 11, 30, 10**6])
def test_conditioned_scores_in_chunks_equal_a_loop_over_pairs(pooling: TextConditionedPooling, chunk: int) -> None:
    patches, texts = torch.randn(5, 4, 24).double(), torch.randn(11, 24).double()
    attention = attention_of(pooling, 24)
    expected = torch.empty(5, 11)
    for i, own in enumerate(patches):
        for j, text in enumerate(texts):
            keys, values = pooling.norm_key(own), pooling.norm_value(own)
            seen, _ = attention(pooling.norm_query(text)[None], keys, values)
            expected[i, j] = cosine_similarity(seen[0], text, dim=0)
    torch.testing.assert_close(conditioned_scores(pooling, patches, texts, chunk), expected, atol=1e-6, rtol=0)


def test_scores_of_chosen_pairs_are_those_of_all_pairs(pooling: TextConditionedPooling) -> None:
    patches, texts = torch.randn(6, 4, 24).double(), torch.randn(9, 24).double()
    image_N, text_N = torch.randint(0, 6, (40,)), torch.randint(0, 9, (40,))
    found = conditioned_pair_scores(pooling, patches, texts, image_N, text_N)
    torch.testing.assert_close(found, conditioned_scores(pooling, patches, texts)[image_N, text_N], atol=1e-6, rtol=0)


def test_agnostic_scores_are_cosines() -> None:
    images, texts = 5 * torch.randn(3, 8).double(), 0.1 * torch.randn(4, 8).double()
    expected = [[(i @ t / (i @ i).sqrt() / (t @ t).sqrt()).item() for t in texts] for i in images]
    torch.testing.assert_close(agnostic_scores(images, texts), torch.tensor(expected).double())
