"""Contrast between two views against a transcription of SLIP's formula [docs/method.md 4]."""

import pytest
import torch
from naive import cosine
from shares import summed_shares, uneven_parts
from torch import Tensor, nn

from vlp.data.batch import Batch
from vlp.models.model import VisionLanguageModel
from vlp.objectives.view_contrast import ViewContrastive


def through_head(head: nn.Sequential, x_W: Tensor) -> Tensor:
    """Two hidden layers, each normed, then rectified; a linear output."""
    for linear, norm in ((head[0], head[1]), (head[3], head[4])):
        x_W = linear.weight @ x_W + linear.bias
        centred = x_W - x_W.mean()
        x_W = centred / ((centred**2).mean() + norm.eps).sqrt() * norm.weight + norm.bias
        x_W = x_W * (x_W > 0)
    return head[6].weight @ x_W + head[6].bias


def naive_loss(a: list[Tensor], b: list[Tensor], temperature: float) -> Tensor:
    """l_a(i) = -log[e^{a_i.b_i/tau} / (sum_j e^{a_i.b_j/tau} + sum_{j != i} e^{a_i.a_j/tau})],
    L = (mean l_a + mean l_b) / 2"""

    def alike(x: Tensor, y: Tensor) -> Tensor:
        return (cosine(x, y) / temperature).exp()

    total = 0.0
    for own, other in ((a, b), (b, a)):
        for i, x in enumerate(own):
            others = sum(alike(x, y) for y in other) + sum(alike(x, y) for j, y in enumerate(own) if j != i)
            total = total - torch.log(alike(x, other[i]) / others)
    return total / len(a) / 2


@pytest.mark.parametrize(("images", "views", "temperature"), [(1, 2, 0.1), (2, 2, 0.1), (5, 3, 0.3)])
def test_view_contrast(images, views, temperature, tiny_recipe, given, leaf, compare) -> None:
    """The first two global views count, however many there are."""
    recipe = tiny_recipe("slip", f"objectives.views={{hidden: 9, width: 6, temperature: {temperature}}}")
    torch.manual_seed(1)
    model = VisionLanguageModel(recipe, {}).double()
    objective = ViewContrastive(recipe, recipe.objectives["views"], model).double()
    for parameter in objective.parameters():
        nn.init.normal_(parameter, std=0.5)
    tokens = leaf(images, views, 5, 32, seed=1)
    parts = [
        given(model, Batch(index_B=2 * torch.tensor(rows) + 5), vision={"global": tokens[rows]})
        for rows in uneven_parts(images)
    ]
    a, b = ([through_head(objective.head, image[view, 0]) for image in tokens] for view in (0, 1))
    compare(summed_shares(objective, parts), naive_loss(a, b, temperature), [tokens, *objective.parameters()])
