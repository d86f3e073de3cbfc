"""Token classification under IDF weights against loops over captions and tokens, and SuperCLIP's float64 recursion."""

import math

import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

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

# ---- naive versions, written from docs/method.md ---------------------------------------------------------------------


def inner_ids(row: list[int]) -> list[int]:
    """The ids strictly between start and end token, by position."""
    return row[1 : row.index(END)]


def naive_loss(logits_BV: Tensor, ids_BKL: Tensor, idf_V: Tensor) -> Tensor:
    """mean over captions with targets of -sum_c yhat_c log softmax(x)_c."""
    losses = []
    for logits_V, captions in zip(logits_BV, ids_BKL.tolist(), strict=True):
        log_softmax_V = torch.log(logits_V.exp() / logits_V.exp().sum())
        for row in captions:
            present = set(inner_ids(row))
            total = sum(float(idf_V[c]) for c in present)
            if total > 0:
                losses.append(-sum(float(idf_V[c]) / total * log_softmax_V[c] for c in present))
    return sum(losses) / len(losses) if losses else 0 * logits_BV.sum()


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


# ---- the loss ---------------------------------------------------------------------------------------------------

CAPTIONS = {
    "uneven": [[[5], [5, 9, 5, 5, 11]], [[], [49405, 0, 0]], [[7, 7, 7, 7], [1, 2, 3, 4, 5, 6]]],
    "K=1": [[[5, 9, 5]], [[]], [[3]]],
    "one sample": [[[8, 3, 8, 8, 2]]],
    "one empty caption": [[[]]],
    "all empty": [[[], []], [[], []]],
}


@pytest.mark.parametrize("name", CAPTIONS)
@pytest.mark.parametrize("padding", [0, 3])
def test_loss(name: str, padding: int, caption_ids, leaf, compare) -> None:
    captions = CAPTIONS[name]
    ids = caption_ids([row for image in captions for row in image]).view(len(captions), len(captions[0]), -1)
    ids = torch.nn.functional.pad(ids, (0, padding), value=PAD)
    logits = leaf(len(captions), VOCABULARY, seed=1)
    idf = torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    count = sum(bool(row) for image in captions for row in image)
    compare(classification_loss(logits, ids, idf) / max(count, 1), naive_loss(logits, ids, idf), [logits])


def test_extreme_logits_stay_finite(caption_ids) -> None:
    logits = torch.zeros(1, VOCABULARY, dtype=torch.float64)
    logits[0, 5] = 3000.0
    loss = classification_loss(logits, caption_ids([[5, 6]])[None], torch.ones(VOCABULARY, dtype=torch.float64))
    assert loss.item() == pytest.approx(1500.0)


def test_module(superclip, given, leaf, caption_ids, compare) -> None:
    """x = W LN(z) + b with z the mean of the patch tokens (class token out), before any projection."""
    objective, model = superclip("objectives.classification.captions_per_image=2", "objectives.classification.idf=none")
    ids = caption_ids([[3, 4], [3, 3, 9, 1], [], [8]]).view(2, 2, -1)
    tokens, texts = leaf(2, 5, 32, seed=2), torch.zeros(2, 1, 16)
    nn.init.normal_(objective.norm.weight)
    nn.init.normal_(objective.norm.bias)
    batch = Batch(index_B=torch.arange(2), captions={"anyx2": ids})
    counts = objective.counts(batch)
    assert counts["present"] == 3
    objective.begin_step(counts)
    ours = objective(given(model, "any", texts, batch=batch, image_tokens=tokens), counts).loss

    rows = []
    for image in tokens:
        z = sum(image[1:]) / 4
        centred = z - z.mean()
        x = centred / ((centred**2).mean() + objective.norm.eps).sqrt() * objective.norm.weight + objective.norm.bias
        rows.append(objective.head.weight @ x + objective.head.bias)
    naive = naive_loss(torch.stack(rows), ids, torch.ones(VOCABULARY, dtype=torch.float64))
    compare(ours, naive, [tokens, *objective.parameters()])
    assert objective.head.weight.std().item() == pytest.approx(32**-0.5, rel=0.01)
    assert objective.head.weight.shape == (VOCABULARY, 32)
    assert not objective.head.bias.any()


def test_shares_add_up(superclip, given, leaf, caption_ids, compare) -> None:
    """Three uneven micro-batches with the global counts: the loss of the whole batch, running IDF included."""
    ids = caption_ids([[3, 4], [3, 3, 9, 1], [], [8, 3], [5], [4, 5, 6, 7]]).view(6, 1, -1)
    tokens, texts = leaf(6, 5, 32, seed=3), torch.zeros(6, 1, 16)

    def run(parts: list[list[int]]):
        objective, model = superclip()
        batches = [Batch(index_B=torch.tensor(rows), captions={"any": ids[rows]}) for rows in parts]
        counts = [objective.counts(batch) for batch in batches]
        totals = {key: sum(count[key] for count in counts) for key in counts[0]}
        objective.begin_step(totals)
        losses = [
            objective(given(model, "any", texts, batch=batch, image_tokens=tokens[rows]), totals).loss
            for rows, batch in zip(parts, batches, strict=True)
        ]
        return sum(losses), objective

    (whole, first), (parts, second) = run([list(range(6))]), run([[0, 3], [2], [5, 4, 1]])
    assert torch.equal(first.frequency_V, second.frequency_V)
    compare(parts, whole, [tokens])


# ---- IDF --------------------------------------------------------------------------------------------------------


def test_running_idf_is_the_references_recursion(superclip) -> None:
    """f += sum y / B, n += 1, eps = 1 / B, w = log((n + eps) / (f + eps)), updated before use, over several steps."""
    objective, _ = superclip()
    batch_size, rng = 4, torch.Generator().manual_seed(1)
    f, n = torch.zeros(VOCABULARY, dtype=torch.float64), 0.0
    for _ in range(5):
        captions = []
        for row in range(batch_size):
            inner = torch.randint(0, 12, (row,), generator=rng).tolist()  # one of them empty
            captions.append([START, *inner, END, *[PAD] * (batch_size - row)])
            for c in set(inner):
                f[c] += 1 / batch_size
        n += 1
        batch = Batch(index_B=torch.arange(batch_size), captions={"any": torch.tensor(captions)[:, None]})
        objective.begin_step(objective.counts(batch))
        eps = 1 / batch_size
        expected = torch.tensor([math.log((n + eps) / (x + eps)) for x in f[:20].tolist()], dtype=torch.float64)
        assert (expected[:12] > 0).any()
        torch.testing.assert_close(objective.idf()[:20].double(), expected, rtol=1e-6, atol=1e-6)
        assert (objective.idf() >= 0).all()

    before = objective.idf().clone()
    objective.eval()  # frozen in evaluation
    objective.begin_step(objective.counts(batch))
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


def test_static_idf() -> None:
    frequency = torch.tensor([0, 1, 9, 98, 99, 100])
    expected = [max(0.0, math.log(100 / (1 + df))) for df in frequency.tolist()]
    assert static_idf(frequency, torch.tensor([100])).tolist() == pytest.approx(expected, rel=1e-6)
    assert static_idf(frequency, torch.tensor([100]))[-1] == 0


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


def test_rows_whose_tokens_all_weigh_nothing_add_nothing(superclip, given, leaf, caption_ids) -> None:
    """C2 in the first step of a run: id 3 is in every caption so far, its weight is log(1) = 0, and 0 / 0 is no
    target. No NaN, no gradient from that row."""
    objective, model = superclip()
    tokens, texts = leaf(2, 5, 32, seed=4), torch.zeros(2, 1, 16)
    ids = caption_ids([[3], [3, 8]])[:, None]
    batch = Batch(index_B=torch.arange(2), captions={"any": ids})
    counts = objective.counts(batch)
    objective.begin_step(counts)
    assert objective.idf()[3] == 0
    loss = objective(given(model, "any", texts, batch=batch, image_tokens=tokens), counts).loss
    loss.backward()
    logits = objective.head(objective.norm(tokens[1:, 1:].mean(1)))
    expected = naive_loss(logits, ids[1:], objective.idf())
    torch.testing.assert_close(loss * counts["present"], expected, rtol=1e-10, atol=1e-10)
    assert not tokens.grad[0].any()
    assert tokens.grad[1].any()
