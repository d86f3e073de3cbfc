"""CLIP, SigLIP and CoCa against open_clip's own losses."""

import pytest
import torch
from naive import clip, mean_clip, unit
from open_clip.loss import CoCaLoss, SigLipLoss
from random_batch import prompts_of, random_batch
from shares import summed_shares, uneven_parts

from vlp.data.batch import Batch
from vlp.models.model import VisionLanguageModel
from vlp.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive, pairwise_contrast
from vlp.objectives.graph import ObjectiveGraph


@pytest.fixture
def setting(tiny_recipe, given, leaf):
    """Our loss of a recipe's contrast, the model, and the images and texts it is of."""

    def make(objective: type, name: str, images: int, captions: int):
        recipe = tiny_recipe(name, f"objectives.contrastive.captions_per_image={captions}")
        settings = recipe.objectives["contrastive"]
        model = VisionLanguageModel(recipe, {"logit_scale", "logit_bias"}).double()
        pictures, texts = leaf(images, 16, seed=1), leaf(images, captions, 16, seed=2)
        parts = [
            given(
                model,
                Batch(index_B=3 * torch.tensor(rows) + 1),
                {settings.request.name: texts[rows]},
                image_embeds=pictures[rows],
            )
            for rows in uneven_parts(images)
        ]
        return summed_shares(objective(recipe, settings, model), parts), model, pictures, texts

    return make


@pytest.mark.parametrize(("images", "captions"), [(1, 1), (2, 1), (9, 1), (1, 3), (5, 3)])
def test_softmax_contrast(images: int, captions: int, setting, compare) -> None:
    """With several captions the mean over them, the k-th among everyone's k-th ones."""
    ours, model, pictures, texts = setting(SoftmaxContrastive, "clip", images, captions)
    log_scale = model.logit_scale.log_scale
    theirs = sum(clip(pictures, texts[:, k], log_scale.exp()) for k in range(captions)) / captions
    compare(ours, theirs, [pictures, texts, log_scale])


@pytest.mark.parametrize("images", [1, 2, 9])
def test_sigmoid_contrast(images: int, setting, compare) -> None:
    ours, model, pictures, texts = setting(SigmoidContrastive, "siglip", images, 1)
    log_scale, bias = model.logit_scale.log_scale, model.logit_bias.bias
    theirs = SigLipLoss()(unit(pictures), unit(texts[:, 0]), log_scale.exp(), bias)
    compare(ours, theirs, [pictures, texts, log_scale, bias])


@pytest.mark.parametrize(("views", "texts"), [(1, 1), (2, 3), (4, 1)])
def test_pairwise_contrast(views: int, texts: int, leaf, compare) -> None:
    """All pairs of a view and a text; the parts' pairs stand anywhere among all."""
    images_GnD, texts_GmD = leaf(5, views, 7, seed=3), leaf(5, texts, 7, seed=4)
    scale = torch.tensor([9.0], dtype=torch.float64, requires_grad=True)
    ours = sum(
        pairwise_contrast(images_GnD[rows], texts_GmD[rows], images_GnD, texts_GmD, torch.tensor(rows), scale)
        for rows in uneven_parts(5)
    )
    theirs = mean_clip(images_GnD.unbind(1), texts_GmD.unbind(1), scale)
    compare(ours / 5, theirs, [images_GnD, texts_GmD, scale])


def test_coca(tiny_recipe, compare) -> None:
    """The whole graph. CoCaLoss gets the logits of every position, the ids one place on as labels, and leaves out
    padding; captions are of different lengths, one of them empty."""
    recipe = tiny_recipe("coca", "model.decoder.queries=3")
    torch.manual_seed(0)
    graph = ObjectiveGraph(recipe).double()
    batch = random_batch(graph.needs.data, recipe, images=4)
    (task,) = batch.prompts
    answers = [[7, 8, 9, 7, 30], [], [4], [11, 12]]
    batch.prompts[task] = prompts_of([([], answer) for answer in answers], range(4), length=9)
    ids_BL = batch.prompts[task].ids_RL

    seen = {}
    last_block = graph.model.decoder.blocks[-1]
    last_block.register_forward_hook(lambda *call: seen.update(hidden=call[-1]))
    ours, _ = graph(batch, graph.begin_step([batch], 0), 0)

    model = graph.model
    logits = model.decoder.head(model.decoder.norm(seen["hidden"]))[:, : ids_BL.shape[1] - 1]
    pictures = model.image_embeds(model.vision(batch.images_B3HW))
    texts = model.text(batch.captions["any"][:, 0])[1]
    loss = CoCaLoss(caption_loss_weight=2, clip_loss_weight=1)
    scale = model.logit_scale.log_scale.exp()
    theirs = sum(loss(unit(pictures), unit(texts), logits, ids_BL[:, 1:], scale))
    compare(ours, theirs, list(graph.parameters()))
