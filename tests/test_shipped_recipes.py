"""Every shipped recipe, as it stands at the demo scale, on real shards: it learns with all of its parameters."""

from pathlib import Path

import pytest
import torch

from vlp.data.loader import make_loader
from vlp.engine.optimizer import make_optimizer
from vlp.objectives.graph import ObjectiveGraph
from vlp.recipe import SHIPPED_RECIPES, Recipe, load_recipe, save_recipe

NAMES = sorted(path.stem for path in SHIPPED_RECIPES.glob("*.yaml"))
ASKED_FOR = {
    *("clip", "siglip", "flip", "coca", "lit", "dreamlip", "clip_mixed"),
    *("superclip", "supersiglip", "superflip", "superclip_dual", "superclass"),
    *("flair", "silc", "cosmos", "flair_tcsd", "slip", "locca", "siglip2_style", "goldi_super"),
    *("goldiclip", "goldiclip_ca", "goldiclip_dc", "goldiclip_vd", "goldiclip_un"),
}


def load_small_batches(name: str, shards: Path) -> Recipe:
    """The recipe at the demo scale in batches of 8, in which every image has its turn from the first step."""
    path = SHIPPED_RECIPES / f"{name}.yaml"
    small = ["train.batch_size=8", "train.steps=2", "data.workers=0", "data.streams=2", "data.shuffle=8"]
    small += [f"data.train={shards}/train-*.tar", f"data.validation={shards}/validation-*.tar"]
    for objective, settings in load_recipe(path).objectives.items():
        small += [f"objectives.{objective}.share=1"] if hasattr(settings, "share") else []
        small += [f"objectives.{objective}.starts_at=0"] if settings.starts_at else []
    return load_recipe(path, small, world_size=1)


def test_every_method_has_its_recipe() -> None:
    assert set(NAMES) >= ASKED_FOR


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name: str, tiny_shards: Path) -> None:
    recipe = load_small_batches(name, tiny_shards)
    torch.manual_seed(0)
    graph = ObjectiveGraph(recipe)
    optimizer = make_optimizer(graph)
    loader = make_loader(recipe, lambda _: graph.needs.data, 0, 1, {}, 0)
    for step in range(2):
        batches = [next(loader).batch]
        total, report = graph(batches[0], graph.begin_step(batches, step), step)
        total.backward()
        assert all(torch.isfinite(value).all() for value in report.values())
        assert all(report[f"loss/{objective}"] > 0 for objective in recipe.objectives)
        for parameter_name, parameter in graph.named_parameters():
            has_gradient = parameter.grad is not None and bool(parameter.grad.isfinite().all() and parameter.grad.any())
            assert has_gradient == parameter.requires_grad, parameter_name
        optimizer.step()
        optimizer.zero_grad()
        graph.end_step(step)


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_recipe_round_trips(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(SHIPPED_RECIPES / f"{name}.yaml")
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_what_it_is_and_how_to_run_it(name: str) -> None:
    text = (SHIPPED_RECIPES / f"{name}.yaml").read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert header, "a recipe begins with what it is"
    assert any(f"recipes/{name}.yaml" in line for line in header), "the command belongs in the header"
