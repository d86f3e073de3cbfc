"""However the global batch is split over ranks and micro-batches, losses, gradients and buffers are the same: every
objective, in float64 over gloo, against one process with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from random_batch import random_batch
from ranks import spawn_ranks
from torch import Tensor

from vlp.data.batch import Batch, Prompts
from vlp.data.tokens import PAD, VOCABULARY
from vlp.objectives import REGISTRY
from vlp.objectives.graph import ObjectiveGraph
from vlp.recipe import load_recipe

IMAGES, STEP = 8, 3
RECIPES = {
    "goldi_super": [
        *("objectives.retrieval.captions_per_image=3", "objectives.distillation.captions_per_image=2"),
        *("objectives.distillation.negatives=3", "objectives.distillation.prototypes=24"),
    ],
    "siglip2_style": [
        *("objectives.distillation={starts_at: 0, prototypes: 24}", "objectives.masked={starts_at: 0, prototypes: 24}"),
        "data.views={global_count: 2, local_count: 1, local_size: 16}",
    ],
    "superflip": ["objectives.contrastive={captions: mixed, captions_per_image: 2}"],
    "coca": ["model.decoder.queries=5"],
    "slip": ["objectives.views={hidden: 12, width: 6}"],
    "cosmos": ["objectives.distillation={local_texts: 1, heads: 2}"],
    "dreamlip": ["objectives.contrastive.captions_per_image=2", "objectives.grouping.captions_per_image=3"],
    "dreamlip_batch": [
        *("objectives.contrastive.captions_per_image=2", "objectives.grouping.captions_per_image=2"),
        "objectives.grouping.negatives=batch",
    ],
}
ALL_VIEWS = ("slip", "cosmos")
"""Recipes whose objectives read views of every image."""


def build(case: str, accumulation: int) -> ObjectiveGraph:
    root = Path(__file__).parents[2]
    settings = [f"scale={root}/tests/objectives/tiny.yaml", f"train.accumulation={accumulation}"]
    name = case.split("_batch")[0]
    recipe = load_recipe(root / f"recipes/{name}.yaml", [*settings, *RECIPES[case]], world_size=1)
    torch.manual_seed(0)
    graph = ObjectiveGraph(recipe).double()
    if graph.balancer.log_variances is not None:
        torch.nn.init.constant_(graph.balancer.log_variances, 0.3)
    for name, buffer in graph.named_buffers():  # as after some steps
        if name.endswith("center_C"):
            torch.nn.init.normal_(buffer)
    return graph


def take(batch: Batch, rows: list[int]) -> Batch:
    """These images of a batch, its texts cut to what is longest among them."""

    def cut(ids: Tensor) -> Tensor:
        used = (ids != PAD).flatten(0, -2).any(0).nonzero()
        return ids[..., : int(used.max()) + 1 if len(used) else 8]

    def chosen(rows_R: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.tensor([place for place, row in enumerate(rows_R.tolist()) if row in rows], dtype=torch.int64)
        return places, torch.tensor([rows.index(rows_R[place]) for place in places], dtype=torch.int64)

    part = Batch(batch.index_B[rows], None if batch.images_B3HW is None else batch.images_B3HW[rows])
    part.captions = {name: cut(ids[rows]) for name, ids in batch.captions.items()}
    for task, prompts in batch.prompts.items():
        places, own_rows = chosen(prompts.rows_R)
        ids = prompts.ids_RL[places] if prompts.parallel_R.any() else cut(prompts.ids_RL[places])
        part.prompts[task] = Prompts(ids, prompts.answer_start_R[places], own_rows, prompts.parallel_R[places])
    if batch.view_rows_b is not None:
        places, part.view_rows_b = chosen(batch.view_rows_b)
        part.global_views_bG3HW = batch.global_views_bG3HW[places]
        part.local_views_bV3HW = batch.local_views_bV3HW[places]
    return part


def one_step(graph: ObjectiveGraph, parts: list[Batch]) -> dict[str, Tensor]:
    """What DeepSpeed does with this rank's micro-batches: losses summed, gradients averaged, buffers moved on."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    totals = graph.begin_step(parts, STEP)
    found: dict[str, Tensor] = {}
    caches = graph(parts, totals, STEP) if len(parts) > 1 else [None]
    for part, cache in zip(parts, caches, strict=True):
        total, report = graph(part, totals, STEP, cache)
        (total / len(parts)).backward()
        for key in report:
            if key.split("/")[0] == "loss":
                found[key] = found.get(key, 0.0) + report[key].double()
    found |= {f"gradient {n}": p.grad / ranks for n, p in graph.named_parameters() if p.grad is not None}
    if ranks > 1:
        for tensor in found.values():
            dist.all_reduce(tensor)
    graph.end_step(STEP)
    found |= {f"buffer {name}": buffer for name, buffer in graph.named_buffers()}
    return {name: without_unused_words(tensor) for name, tensor in found.items()}


def without_unused_words(tensor: Tensor) -> Tensor:
    """Of tables of the vocabulary: the ids that occur, and the sum of all."""
    if tensor.ndim == 0 or len(tensor) < VOCABULARY:
        return tensor
    return torch.cat([tensor[:64], tensor[-2:], tensor.sum(0, keepdim=True)])


def run_splits(folder: Path, rank: int, ranks: int) -> None:
    """Every case at accumulation 1 and 2."""
    for case in RECIPES:
        batch = torch.load(folder / f"{case}.pt", weights_only=False)
        for accumulation in (1, 2):
            size = IMAGES // (ranks * accumulation)
            first = [(micro * ranks + rank) * size for micro in range(accumulation)]
            parts = [take(batch, list(range(start, start + size))) for start in first]
            found = one_step(build(case, accumulation), parts)
            if rank == 0:
                torch.save(found, folder / f"{case}-{ranks}-{accumulation}.pt")


def run_rank(folder: Path) -> None:
    """In a spawned rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run_splits(folder, dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch for each case."""
    folder = tmp_path_factory.mktemp("splits")
    for case in RECIPES:
        graph = build(case, 1)
        rows = range(IMAGES) if case in ALL_VIEWS else [3, 4, 6]
        batch = random_batch(graph.needs.data, graph.recipe, IMAGES, seed=1, view_rows=rows)
        torch.save(batch, folder / f"{case}.pt")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, dict[str, Tensor]]:
    """One process, the whole batch at once."""
    return {case: one_step(build(case, 1), [torch.load(folder / f"{case}.pt", weights_only=False)]) for case in RECIPES}


@pytest.fixture(scope="module")
def split(folder: Path) -> Path:
    run_splits(folder, rank=0, ranks=1)
    for ranks in (2, 4):
        spawn_ranks(run_rank, ranks, folder)
    return folder


def test_every_objective_is_here() -> None:
    types = {settings.type for case in RECIPES for settings in build(case, 1).recipe.objectives.values()}
    assert types == set(REGISTRY)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("case", RECIPES)
def test_no_split_changes_losses_gradients_or_buffers(case, ranks, accumulation, whole, split) -> None:
    found, expected = torch.load(split / f"{case}-{ranks}-{accumulation}.pt"), whole[case]
    assert found.keys() == expected.keys()
    assert sum(key.startswith("gradient") for key in found) > 20
    for key, tensor in expected.items():
        exact = 1e-7 if key.endswith("pos_embed") else 1e-9  # timm interpolates positions in float32
        torch.testing.assert_close(
            found[key], tensor, rtol=exact, atol=exact, msg=lambda text, key=key: f"{key}: {text}"
        )
