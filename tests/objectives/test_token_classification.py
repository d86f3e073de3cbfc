"""Which tokens are targets, and what IDF counts. Values and gradients: tests/parity."""

import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vlp.data.batch import Batch
from vlp.data.tokens import END, PAD, START, VOCABULARY
from vlp.models.model import VisionLanguageModel
from vlp.objectives.classification import (
    TokenClassification,
    caption_tokens,
    classification_loss,
    document_frequency,
    running_idf,
    static_idf,
)


@pytest.fixture
def superclip(tiny_recipe):
    def make(*overrides: str) -> tuple[TokenClassification, VisionLanguageModel]:
        recipe = tiny_recipe("superclip", *overrides)
        torch.manual_seed(0)
        model = VisionLanguageModel(recipe, {"image_projection"})
        return TokenClassification(recipe, recipe.objectives["classification"], model).double(), model.double()

    return make


# ---- which tokens -----------------------------------------------------------------------------------------------

words = st.lists(st.integers(0, START - 1) | st.sampled_from([0, 256, 320]), max_size=20)


@over(captions=st.lists(words, min_size=1, max_size=4), padding=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_targets_are_the_different_ids_between_start_and_end(captions: list[list[int]], padding: int) -> None:
    length = max(map(len, captions)) + 2 + padding
    rows = [[START, *inner, END, *[PAD] * (length - 2 - len(inner))] for inner in captions]
    ids = torch.tensor(rows)
    chosen = caption_tokens(ids)
    assert chosen.shape == ids.shape
    for row, mask, inner in zip(ids, chosen, captions, strict=True):
        assert sorted(row[mask].tolist()) == sorted(set(inner))  # once each, the id of "!" (0) too, never padding
    expected = torch.zeros(VOCABULARY, dtype=torch.int64)
    for inner in captions:
        for c in set(inner):
            expected[c] += 1
    assert torch.equal(document_frequency(ids), expected)


def test_extreme_logits_stay_finite(caption_ids) -> None:
    logits = torch.zeros(1, VOCABULARY, dtype=torch.float64)
    logits[0, 5] = 3000.0
    loss = classification_loss(logits, caption_ids([[5, 6]])[None], torch.ones(VOCABULARY, dtype=torch.float64))
    assert loss.item() == pytest.approx(1500.0)


def test_head_starts_as_in_the_release(superclip) -> None:
    objective, _ = superclip()
    assert objective.head.weight.shape == (VOCABULARY, 32)
    assert objective.head.weight.std().item() == pytest.approx(32**-0.5, rel=0.01)
    assert not objective.head.bias.any()


# ---- IDF --------------------------------------------------------------------------------------------------------


def test_running_idf_is_frozen_in_evaluation(superclip, caption_ids) -> None:
    objective, _ = superclip()
    batch = Batch(index_B=torch.arange(2), captions={"any": caption_ids([[3, 4], [4]])[:, None]})
    counts = objective.counts(batch)
    objective.begin_step(counts)
    assert objective.documents == 2
    before = objective.idf()
    assert before[3] > 0
    objective.eval()
    objective.begin_step(counts)
    assert torch.equal(objective.idf(), before)


def test_start_and_end_weigh_exactly_nothing_when_every_position_is_scattered() -> None:
    """docs/method.md 1: the reference scatters all 77 ids; start and end token are in every caption, so their weight is
    log(1) = 0 in every step, and padding's is too until some caption fills all positions."""
    counts, documents = torch.zeros(VOCABULARY, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    rng = torch.Generator().manual_seed(2)
    for step in range(4):
        for row in range(8):
            full = step == 3 and row == 0
            inner = torch.randint(300, 400, (75 if full else row,), generator=rng).tolist()
            ids = [START, *inner, END, *[PAD] * (75 - len(inner))]
            assert len(ids) == 77
            for c in set(ids):
                counts[c] += 1
            documents += 1
        weights = running_idf(counts, documents)
        assert weights[START] == 0
        assert weights[END] == 0
        assert weights[PAD] == 0 if step < 3 else 0 < weights[PAD] < 0.05
        assert (weights[300:400] > 0).all()
        assert torch.isfinite(weights).all()


def test_static_idf_is_read_from_a_file_and_does_not_move(superclip, tmp_path, caption_ids) -> None:
    frequency = torch.randint(0, 50, (VOCABULARY,))
    save_file({"frequency": frequency, "documents": torch.tensor([50])}, tmp_path / "idf.safetensors")
    objective, _ = superclip(
        "objectives.classification.idf=static", f"objectives.classification.idf_file={tmp_path}/idf.safetensors"
    )
    assert torch.equal(objective.idf(), static_idf(frequency, torch.tensor([50])))
    batch = Batch(index_B=torch.arange(1), captions={"any": caption_ids([[3, 4]])[None]})
    objective.begin_step(objective.counts(batch))
    assert torch.equal(objective.frequency_V, frequency)
