"""Token classification against loops over captions and tokens, and SuperCLIP's recursion for the running IDF."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from shares import summed_shares, uneven_parts
from torch import Tensor, nn

from vlp.data.batch import Batch
from vlp.data.tokens import END, PAD, VOCABULARY
from vlp.models.model import VisionLanguageModel
from vlp.objectives.classification import TokenClassification

CAPTIONS = {
    "uneven": [[[5], [5, 9, 5, 5, 11]], [[], [49405, 0, 0]], [[7, 7, 7, 7], [1, 2, 3, 4, 5, 6]], [[5, 9], [5]]],
    "one caption each": [[[5, 9, 5]], [[]], [[3]]],
    "one image": [[[8, 3, 8, 8, 2]]],
    "one empty caption": [[[]]],
    "all empty": [[[], []], [[], []]],
    "a word that all have": [[[3]], [[3, 8]], [[8, 3]]],
}
DOCUMENTS = 50
FREQUENCY = torch.randint(0, DOCUMENTS, (VOCABULARY,), generator=torch.Generator().manual_seed(5))
FREQUENCY[5] = DOCUMENTS  # static IDF would be negative


def words(row: list[int]) -> set[int]:
    """The different ids strictly between start and end token, by position."""
    return set(row[1 : row.index(END)])


def running_weights(steps: list[list[list[int]]]) -> dict[int, float]:
    """f += sum y / B, n += 1, eps = 1 / B, w = log((n + eps) / (f + eps)) [docs/method.md 1, IDF; C4]."""
    f, n = {}, 0
    for rows in steps:
        eps, n = 1 / len(rows), n + 1
        for row in rows:
            for c in words(row):
                f[c] = f.get(c, 0.0) + 1 / len(rows)
    return {c: math.log((n + eps) / (count + eps)) for c, count in f.items()}


def static_weight(c: int) -> float:
    """max(0, log(|D| / (1 + df_c))) (C3)"""
    return max(0.0, math.log(DOCUMENTS / (1 + int(FREQUENCY[c]))))


def naive_loss(objective, tokens_BNW: Tensor, ids_BKL: Tensor, weight) -> Tensor:
    """mean over captions that have words of -sum_c yhat_c log softmax(x)_c, x = W LN(z) + b, z the mean patch token."""
    losses = []
    for tokens_NW, captions in zip(tokens_BNW, ids_BKL.tolist(), strict=True):
        z = sum(tokens_NW[1:]) / (len(tokens_NW) - 1)
        centred = z - z.mean()
        x = centred / ((centred**2).mean() + objective.norm.eps).sqrt() * objective.norm.weight + objective.norm.bias
        logits_V = objective.head.weight @ x + objective.head.bias
        log_softmax_V = torch.log(logits_V.exp() / logits_V.exp().sum())
        for row in filter(words, captions):
            weights = {c: float(torch.tensor(weight(c)).float()) for c in words(row)}  # IDF is float32
            total = sum(weights.values())
            losses.append(-sum(w / total * log_softmax_V[c] for c, w in weights.items() if total) + 0 * z.sum())
    return sum(losses) / len(losses) if losses else 0 * tokens_BNW.sum()


@pytest.fixture
def loss_of(tiny_recipe, given, tmp_path: Path):
    """Our loss in the last of several steps, and the objective."""

    def run(idf: str, tokens_BNW: Tensor, steps: list[Tensor]):
        file = tmp_path / "idf.safetensors"
        save_file({"frequency": FREQUENCY, "documents": torch.tensor([DOCUMENTS])}, file)
        path = "objectives.classification"
        overrides = f"{path}.idf={idf}", f"{path}.idf_file={file}", f"{path}.captions_per_image={steps[0].shape[1]}"
        recipe = tiny_recipe("superclip", *overrides)
        settings = recipe.objectives["classification"]
        model = VisionLanguageModel(recipe, {}).double()
        torch.manual_seed(0)
        objective = TokenClassification(recipe, settings, model).double()
        for parameter in (*objective.norm.parameters(), objective.head.bias):
            nn.init.normal_(parameter)
        for ids in steps:
            parts = [
                given(
                    model,
                    Batch(index_B=torch.tensor(rows), captions={settings.request.name: ids[rows]}),
                    image_tokens=tokens_BNW[rows],
                )
                for rows in uneven_parts(len(ids))
            ]
            loss = summed_shares(objective, parts)
        return loss, objective

    return run


@pytest.mark.parametrize(
    ("name", "idf", "padding"),
    [*((name, "running", 3) for name in CAPTIONS), ("uneven", "static", 0), ("uneven", "none", 1)],
)
def test_token_classification(name: str, idf: str, padding: int, loss_of, caption_ids, leaf, compare) -> None:
    captions = CAPTIONS[name]
    images, count = len(captions), len(captions[0])
    ids = caption_ids([row for image in captions for row in image]).view(images, count, -1)
    ids = nn.functional.pad(ids, (0, padding), value=PAD)
    before = caption_ids([[5, 1, 1, 3]] * images * count).view(images, count, -1)
    steps = [ids] if name == "a word that all have" else [before, ids]  # there its weight is log(1) = 0: no target
    tokens = leaf(images, 5, 32, seed=2)
    ours, objective = loss_of(idf, tokens, steps)
    running = running_weights([step.flatten(0, 1).tolist() for step in steps])
    weight = {"none": lambda c: 1.0, "static": static_weight, "running": running.get}[idf]
    compare(ours, naive_loss(objective, tokens, ids, weight), [tokens, *objective.parameters()])
