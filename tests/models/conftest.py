"""Tiny models for the tests of their parts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vlp.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = [
    "model.embed_dim=16",
    "model.vision={image_size: 32, patch_size: 8, width: 32, depth: 2, heads: 2}",
    "model.text={width: 24, layers: 2, heads: 2, context_length: 77}",
    "data.streams=1",
    "train.batch_size=12",
]


@pytest.fixture(scope="session")
def tiny_recipe() -> Callable[..., Recipe]:
    """A shipped recipe at a size for tests, with overrides."""
    return lambda name, *overrides: load_recipe(RECIPES / f"{name}.yaml", [*TINY, *overrides], world_size=1)
