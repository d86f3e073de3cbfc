"""Decoding against a decoder that reads one prompt at a time, without padding, in loops over positions and heads."""

import pytest
import torch
from naive import attention
from random_batch import prompts_of
from shares import summed_shares, uneven_parts
from torch import Tensor, nn

from vlp.data.batch import Batch, Prompts
from vlp.data.tokens import END, PAD, START
from vlp.models.model import VisionLanguageModel
from vlp.objectives.decoding import Decoding

CONTEXT, IMAGES = 12, 4
ROWS = {
    "caption": ([([5, 6], [7, 8, 9]), ([5, 6], [4]), ([], [3, 3])], [2, 0, 3]),
    "referring": ([([1], [])], [1]),  # an empty answer: the end token alone
    "grounded": ([([3, 3, 3], [0, 2, 0])], [1]),  # id 0 is a byte of "!", not only padding
    "vqa": ([([9], [8]), ([9, 8], [7, 6, 5, 4, 3]), ([2], [2, 2])], [0, 1, 1]),
}
"""(prompt ids, answer ids) by task, and whose image they are about; the last image has no question."""
TOWER, IDS = "through the text tower", "from token ids"
DECODERS = {
    TOWER: ("goldiclip", ()),
    "through the text tower, from pooled patches": ("goldiclip", ("model.decoder.queries=3",)),
    IDS: ("locca", ()),
    "from token ids and pooled patches": ("locca", ("model.decoder.queries=1",)),
}
RECIPE_TASKS = {"goldiclip": tuple(ROWS), "locca": ("caption", "referring", "grounded")}


@pytest.fixture(scope="module")
def build(tiny_recipe):
    def build(decoder: str):
        name, overrides = DECODERS[decoder]
        recipe = tiny_recipe(name, f"model.text.context_length={CONTEXT}", *overrides)
        modules = {"image_projection", "patch_projection", "text", "decoder"}
        torch.manual_seed(0)
        model = VisionLanguageModel(recipe, modules).double()
        for name, parameter in model.decoder.named_parameters():
            if "embedding" not in name and "head" not in name:  # attention, biases and norms that matter
                nn.init.normal_(parameter, std=0.2)
        return recipe, model

    return build


def inputs(model: VisionLanguageModel, ids: list[int], start: int, parallel: bool) -> Tensor:
    """What the first block gets of a prompt whose answer begins at `start`; all places of the context if parallel."""
    read = model.decoder.input
    if not model.decoder.reads_tokens:
        return read(model.text(torch.tensor([ids]))[0][0])
    ids = [*ids, *[PAD] * (CONTEXT - len(ids))] if parallel else ids
    return torch.stack(
        [
            (read.hidden if parallel and place >= start else read.embedding.weight[c]) + read.positions[place]
            for place, c in enumerate(ids)
        ]
    )


def pooled(pooling: nn.Module, patches_PD: Tensor) -> Tensor:
    queries = pooling.norm_query(pooling.queries)
    return pooling.norm(attention(pooling.attention, queries, pooling.norm_patches(patches_PD)))


def naive_losses(model, prompt: list[int], answer: list[int], patches_PD: Tensor, parallel: bool) -> list[Tensor]:
    """NLL of each answer token and of the end token. Position l looks at positions 0..l, at all if parallel."""
    ids = [START, *prompt, *answer, END]
    x_LD = inputs(model, ids, 1 + len(prompt), parallel)
    if model.decoder.pooling is not None:
        patches_PD = pooled(model.decoder.pooling, patches_PD)
    seen = [CONTEXT] * CONTEXT if parallel else list(range(1, len(ids) + 1))
    for block in model.decoder.blocks:
        queries = block.norm_self(x_LD)
        x_LD = x_LD + attention(block.self_attention, queries, queries, seen)
        x_LD = x_LD + attention(block.cross_attention, block.norm_cross(x_LD), patches_PD)
        x_LD = x_LD + block.mlp(block.norm_mlp(x_LD))
    logits_LV = model.decoder.head(model.decoder.norm(x_LD))
    losses = []
    for position in range(1 + len(prompt), len(ids)):  # labels shifted: predicted one position earlier
        logits_V = logits_LV[position - 1]
        losses.append(torch.log(logits_V.exp().sum()) - logits_V[ids[position]])
    return losses


def rows_of(prompts: Prompts, images: list[int]) -> Prompts:
    """The prompts about these images."""
    chosen = [row for row, image in enumerate(prompts.rows_R.tolist()) if image in images]
    places = torch.tensor([images.index(prompts.rows_R[row]) for row in chosen], dtype=torch.int64)
    return Prompts(prompts.ids_RL[chosen], prompts.answer_start_R[chosen], places, prompts.parallel_R[chosen])


@pytest.mark.parametrize(
    ("decoder", "parallel", "patches"),
    [*((name, False, 3) for name in DECODERS), (TOWER, False, 1), (IDS, True, 1), (IDS, True, 4)],
)
def test_decoding(decoder: str, parallel: bool, patches: int, build, given, leaf, compare) -> None:
    """Tasks of different lengths in one pass; parts of the batch without a sample of some. Where captions are predicted
    in parallel, every second one is."""
    recipe, model = build(decoder)
    at_once = {task: [parallel and row % 2 == 0 for row in range(len(ROWS[task][0]))] for task in ROWS}
    prompts = {
        objective.request.name: prompts_of(*ROWS[task], place, CONTEXT if parallel else None, at_once[task])
        for place, (task, objective) in enumerate(recipe.objectives.items())
        if task in ROWS
    }
    tokens = leaf(IMAGES, patches, 16, seed=1)
    batches = [
        Batch(torch.tensor(part), prompts={name: rows_of(rows, part) for name, rows in prompts.items()})
        for part in uneven_parts(IMAGES)
    ]
    leaves = [tokens, *(p for name, p in model.named_parameters() if name.startswith(("text", "decoder")))]
    ours = naive = 0.0
    for factor, task in enumerate(RECIPE_TASKS[DECODERS[decoder][0]], start=1):
        parts = [
            given(model, batch, patch_embeds=tokens[part])
            for batch, part in zip(batches, uneven_parts(IMAGES), strict=True)
        ]
        objective = Decoding(recipe, recipe.objectives[task], model)
        rows = zip(*ROWS[task], at_once[task], strict=True)
        losses = [loss for texts, image, once in rows for loss in naive_losses(model, *texts, tokens[image], once)]
        assert len(losses) == sum(len(answer) + 1 for _, answer in ROWS[task][0])
        ours = ours + factor * summed_shares(objective, parts)
        naive = naive + factor * sum(losses) / len(losses)
    compare(ours, naive, leaves)
