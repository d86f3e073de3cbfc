"""Softmax contrast, text-conditioned and multi-positive sigmoid against loops over images, captions, heads, keys."""

import math

import pytest
import torch
from torch import Tensor, nn

from vlp.models.model import VisionLanguageModel
from vlp.objectives.contrastive import SoftmaxContrastive, softmax_contrast
from vlp.objectives.drawing import draw_caption
from vlp.objectives.text_conditioned import TextConditionedSigmoid

MODULES = {"image_projection", "patch_projection", "pooling", "text", "logit_scale", "logit_bias"}


# ---- naive versions, written from docs/method.md ---------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def naive_softmax_contrast(images_BD: Tensor, texts_BD: Tensor, scale: Tensor) -> Tensor:
    """Mean over the batch of -log softmax of the partner, averaged over the two directions."""
    count = len(images_BD)
    logits = [[scale * cosine(images_BD[i], texts_BD[j]) for j in range(count)] for i in range(count)]
    rows = [-torch.log(logits[i][i].exp() / sum(logits[i][j].exp() for j in range(count))) for i in range(count)]
    columns = [-torch.log(logits[j][j].exp() / sum(logits[i][j].exp() for i in range(count))) for j in range(count)]
    return (sum(rows) / count + sum(columns) / count) / 2


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    mean = x.mean()
    variance = ((x - mean) ** 2).mean()
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def naive_pool(pooling, text_D: Tensor, patches_PD: Tensor) -> Tensor:
    """MHA(LN_q(t), LN_k(v), LN_v(v)) with a softmax over P + 1 keys, the last key and value being zero."""
    query = pooling.query.weight @ layer_norm(text_D, pooling.norm_query) + pooling.query.bias
    keys = [pooling.key.weight @ layer_norm(p, pooling.norm_key) + pooling.key.bias for p in patches_PD]
    values = [pooling.value.weight @ layer_norm(p, pooling.norm_value) + pooling.value.bias for p in patches_PD]
    keys, values = [*keys, torch.zeros_like(query)], [*values, torch.zeros_like(query)]
    size = len(query) // pooling.heads
    found = []
    for head in range(pooling.heads):
        part = slice(head * size, (head + 1) * size)
        weights = [((query[part] * key[part]).sum() / math.sqrt(size)).exp() for key in keys]
        found.append(sum(w * value[part] for w, value in zip(weights, values, strict=True)) / sum(weights))
    return pooling.output.weight @ torch.cat(found) + pooling.output.bias


def torch_pool(pooling, text_D: Tensor, patches_PD: Tensor) -> Tensor:
    """The same by nn.MultiheadAttention(add_zero_attn=True) that carries the weights of `pooling`."""
    attention = nn.MultiheadAttention(len(text_D), pooling.heads, add_zero_attn=True, batch_first=True).double()
    inputs = (pooling.query, pooling.key, pooling.value)
    del attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias
    attention.in_proj_weight = torch.cat([part.weight for part in inputs])
    attention.in_proj_bias = torch.cat([part.bias for part in inputs])
    attention.out_proj.weight, attention.out_proj.bias = pooling.output.weight, pooling.output.bias
    query = pooling.norm_query(text_D)[None, None]
    key, value = pooling.norm_key(patches_PD)[None], pooling.norm_value(patches_PD)[None]
    return attention(query, key, value)[0][0, 0]


def log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log(1 + (-x).exp())


def naive_text_conditioned(pooling, pool, patches_BPD, texts_BKD, drawn_BB, scale, bias) -> Tensor:
    """L_tcs: image i with its own K captions (y = 1) and the drawn caption of every other image (y = -1)."""
    count, captions = texts_BKD.shape[:2]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(count):
        for j in range(count):
            for k in range(captions) if i == j else [int(drawn_BB[i, j])]:
                text = texts_BKD[j, k]
                sign = 1 if i == j else -1
                total = total - log_sigmoid(sign * (scale * cosine(pool(pooling, text, patches_BPD[i]), text) + bias))
    return total / (count + captions - 1)


def naive_multi_positive(images_BD, texts_BKD, scale, bias) -> Tensor:
    """L_mps over all B K captions."""
    count, captions = texts_BKD.shape[:2]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(count):
        for j in range(count):
            for k in range(captions):
                sign = 1 if i == j else -1
                total = total - log_sigmoid(sign * (scale * cosine(images_BD[i], texts_BKD[j, k]) + bias))
    return total / (count * captions)


# ---- softmax contrast -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "width"), [(1, 3), (2, 7), (5, 4), (9, 16)])
def test_softmax_contrast(images: int, width: int, leaf, compare) -> None:
    pictures, texts = leaf(images, width, seed=1), leaf(images, width, seed=2)
    scale = torch.tensor([1 / 0.07], dtype=torch.float64, requires_grad=True)
    ours = softmax_contrast(pictures, texts, pictures, texts, torch.arange(images), scale) / images
    compare(ours, naive_softmax_contrast(pictures, texts, scale), [pictures, texts, scale])


def test_softmax_shares_add_up(tiny_recipe, given, leaf, compare) -> None:
    """Own rows of three uneven parts, whose images lie anywhere in the gathered features."""
    recipe = tiny_recipe("clip")
    model = VisionLanguageModel(recipe, {"image_projection", "logit_scale"}).double()
    objective = SoftmaxContrastive(recipe, recipe.objectives["contrastive"], model)
    pictures, texts = leaf(6, 16, seed=3), leaf(6, 1, 16, seed=4)
    totals = {"present": torch.tensor(6)}
    shares = [
        objective(given(model, "any", texts, own, index=[4, 0, 5, 1, 3, 2], images_GD=pictures), totals).loss
        for own in ([2, 0, 5], [1], [3, 4])
    ]
    leaves = [pictures, texts, model.logit_scale.log_scale]
    compare(sum(shares), naive_softmax_contrast(pictures, texts[:, 0], model.logit_scale.log_scale.exp()), leaves)


# ---- sigmoid contrast -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_recipe) -> VisionLanguageModel:
    torch.manual_seed(0)
    model = VisionLanguageModel(tiny_recipe("goldi_super"), MODULES - {"text"}).double()
    for parameter in model.pooling.parameters():  # biases and norms that matter
        nn.init.normal_(parameter, std=0.3)
    return model


def sigmoid_objective(tiny_recipe, model, captions: int, recipe: str = "goldi_super") -> TextConditionedSigmoid:
    recipe = tiny_recipe(recipe, f"objectives.retrieval.captions_per_image={captions}")
    return TextConditionedSigmoid(recipe, recipe.objectives["retrieval"], model)


def request(captions: int) -> str:
    return "diverse" if captions == 1 else f"diversex{captions}"


@pytest.mark.parametrize("pool", [naive_pool, torch_pool])
@pytest.mark.parametrize(("images", "captions", "patches"), [(1, 1, 1), (1, 4, 3), (4, 1, 5), (5, 3, 2)])
def test_sigmoid_losses(images, captions, patches, pool, model, tiny_recipe, given, leaf, compare) -> None:
    objective = sigmoid_objective(tiny_recipe, model, captions)
    pictures, texts = leaf(images, 16, seed=5), leaf(images, captions, 16, seed=6)
    tokens = leaf(images, patches, 16, seed=7)
    index = [3 * i + 1 for i in range(images)]
    features = given(
        model, request(captions), texts, index=index, seed=9, step=4, images_GD=pictures, patches_GPD=tokens
    )
    drawn = draw_caption(9, 4, torch.tensor(index), torch.tensor(index), captions)
    scale, bias = model.logit_scale.log_scale.exp(), model.logit_bias.bias
    conditioned = naive_text_conditioned(model.pooling, pool, tokens, texts, drawn, scale, bias)
    agnostic = naive_multi_positive(pictures, texts, scale, bias)
    leaves = [pictures, texts, tokens, *model.pooling.parameters()]
    leaves += [model.logit_scale.log_scale, model.logit_bias.bias]
    totals = {"present": torch.tensor(images)}
    compare(objective(features, totals).loss, conditioned + agnostic, leaves)  # GoldiCLIP: the sum

    flair = sigmoid_objective(tiny_recipe, model, captions, "flair")
    compare(flair(features, totals).loss, (conditioned + agnostic) / 2, leaves)  # FLAIR: the mean


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 8])
def test_chunks_do_not_change_value_or_gradient(chunk: int, model, tiny_recipe, given, leaf, compare) -> None:
    pictures, texts, tokens = leaf(5, 16, seed=8), leaf(5, 3, 16, seed=9), leaf(5, 4, 16, seed=10)
    totals, losses, meetings = {"present": torch.tensor(5)}, [], []
    for size in (4096, chunk):
        objective = sigmoid_objective(tiny_recipe, model, 3)
        objective.chunk = size
        features = given(model, request(3), texts, images_GD=pictures, patches_GPD=tokens)
        passes = []
        handle = model.pooling.output.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        losses.append(objective(features, totals).loss)
        handle.remove()
        meetings.append(len(passes))
    assert meetings == [1, math.ceil(7 / chunk)]  # 5 + 3 - 1 captions
    compare(losses[1], losses[0], [pictures, texts, tokens, *model.pooling.parameters(), model.logit_bias.bias])


def test_sigmoid_shares_add_up(model, tiny_recipe, given, leaf, compare) -> None:
    """Three ranks of 1, 3 and 2 images, in another order of the gathered features, give the loss of one process."""
    objective = sigmoid_objective(tiny_recipe, model, 2)
    pictures, texts, tokens = leaf(6, 16, seed=11), leaf(6, 2, 16, seed=12), leaf(6, 3, 16, seed=13)
    totals = {"present": torch.tensor(6)}
    whole = objective(given(model, request(2), texts, images_GD=pictures, patches_GPD=tokens), totals).loss
    order = torch.tensor([5, 1, 0, 4, 2, 3])
    parts = [
        objective(
            given(
                model,
                request(2),
                texts[order],
                own,
                index=order.tolist(),
                images_GD=pictures[order],
                patches_GPD=tokens[order],
            ),
            totals,
        ).loss
        for own in ([4], [0, 1, 2], [5, 3])
    ]
    compare(sum(parts), whole, [pictures, texts, tokens, model.logit_scale.log_scale, model.logit_bias.bias])
