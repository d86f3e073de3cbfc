"""Text-conditioned and text-agnostic sigmoid contrast (FLAIR, GoldiCLIP) against loops over images and captions."""

import math

import pytest
import torch
from naive import cosine, log_sigmoid, pool
from shares import summed_shares, uneven_parts
from torch import Tensor, nn

from vlp.data.batch import Batch
from vlp.models.model import VisionLanguageModel
from vlp.objectives.contrastive import SigmoidContrastive
from vlp.objectives.drawing import draw_caption
from vlp.objectives.text_conditioned import TextConditionedSigmoid

SEED, STEP = 9, 4


def naive_conditioned(pooling, patches_BPD: Tensor, texts_BKD: Tensor, drawn_BB: Tensor, scale, bias) -> Tensor:
    """L_tcs: image i with its own K captions (y = 1) and the drawn caption of every other image (y = -1)."""
    images, captions = texts_BKD.shape[:2]
    losses = []
    for i in range(images):
        for j in range(images):
            for k in range(captions) if i == j else [int(drawn_BB[i, j])]:
                text = texts_BKD[j, k]
                logit = scale * cosine(pool(pooling, text, patches_BPD[i]), text) + bias
                losses.append(-log_sigmoid(logit if i == j else -logit))
    return sum(losses) / (images + captions - 1)


def naive_agnostic(images_BD: Tensor, texts_BKD: Tensor, scale, bias) -> Tensor:
    """L_mps: every image with all B K captions."""
    images, captions = texts_BKD.shape[:2]
    losses = []
    for i in range(images):
        for j in range(images):
            for k in range(captions):
                logit = scale * cosine(images_BD[i], texts_BKD[j, k]) + bias
                losses.append(-log_sigmoid(logit if i == j else -logit))
    return sum(losses) / (images * captions)


@pytest.fixture(scope="module")
def model(tiny_recipe) -> VisionLanguageModel:
    torch.manual_seed(0)
    model = VisionLanguageModel(tiny_recipe("goldi_super"), {"pooling", "logit_scale", "logit_bias"}).double()
    for parameter in model.pooling.parameters():  # biases and norms that matter
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def share_out(model, tiny_recipe, given):
    """Our loss of a recipe's contrast, added up over uneven parts."""

    def run(kind: type, recipe: str, objective: str, pictures: Tensor, texts: Tensor, tokens: Tensor, chunk: int = 99):
        settings = f"objectives.{objective}.captions_per_image={texts.shape[1]}", f"model.pooling.chunk={chunk}"
        recipe = tiny_recipe(recipe, *settings)
        settings = recipe.objectives[objective]
        parts = [
            given(
                model,
                Batch(index_B=3 * torch.tensor(rows) + 1),
                {settings.request.name: texts[rows]},
                seed=SEED,
                step=STEP,
                image_embeds=pictures[rows],
                patch_embeds=tokens[rows],
            )
            for rows in uneven_parts(len(pictures))
        ]
        return summed_shares(kind(recipe, settings, model), parts)

    return run


@pytest.mark.parametrize(
    ("images", "captions", "patches", "chunk"),
    [(1, 1, 1, 99), (1, 4, 3, 99), (4, 1, 5, 4), (5, 3, 2, 6), (5, 3, 2, 3), (2, 3, 2, 1)],
)
def test_text_conditioned_contrast(images, captions, patches, chunk, model, share_out, leaf, compare) -> None:
    """FLAIR takes the mean of the two terms, GoldiCLIP their sum; the conditioned one may be taken in chunks."""
    pictures, texts = leaf(images, 16, seed=5), leaf(images, captions, 16, seed=6)
    tokens = leaf(images, patches, 16, seed=7)
    index = 3 * torch.arange(images) + 1
    drawn = draw_caption(SEED, STEP, index, index, captions)
    scale, bias = model.logit_scale.log_scale.exp(), model.logit_bias.bias
    naive = naive_conditioned(model.pooling, tokens, texts, drawn, scale, bias)
    naive = naive + naive_agnostic(pictures, texts, scale, bias)
    leaves = [pictures, texts, tokens, *model.parameters()]

    passes = []
    handle = model.pooling.output.register_forward_hook(lambda *_: passes.append(1))
    ours = share_out(TextConditionedSigmoid, "goldi_super", "retrieval", pictures, texts, tokens, chunk)
    handle.remove()
    assert len(passes) == len(uneven_parts(images)) * math.ceil((images + captions - 1) / chunk)
    compare(ours, naive, leaves)
    ours = share_out(TextConditionedSigmoid, "flair", "retrieval", pictures, texts, tokens, chunk)
    compare(ours, naive / 2, leaves)


@pytest.mark.parametrize(("images", "captions"), [(1, 3), (4, 2)])
def test_sigmoid_contrast_with_several_captions(images, captions, model, share_out, leaf, compare) -> None:
    pictures, texts = leaf(images, 16, seed=8), leaf(images, captions, 16, seed=9)
    ours = share_out(SigmoidContrastive, "siglip", "contrastive", pictures, texts, texts)
    log_scale, bias = model.logit_scale.log_scale, model.logit_bias.bias
    compare(ours, naive_agnostic(pictures, texts, log_scale.exp(), bias), [pictures, texts, log_scale, bias])
