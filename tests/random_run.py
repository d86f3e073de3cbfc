"""A finished run with random weights, and command lines called in this process."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlp.models.model import VisionLanguageModel
from vlp.objectives.graph import graph_needs
from vlp.recipe import load_recipe, save_recipe

REPOSITORY = Path(__file__).resolve().parents[1]


def write_random_run(folder: Path, recipe: str, overrides: list[str], seed: int = 0) -> Path:
    """A run folder as training leaves it. Every weight is random, norms and biases too, so that each one matters."""
    folder.mkdir(parents=True)
    resolved = load_recipe(REPOSITORY / "recipes" / f"{recipe}.yaml", [*overrides, f"run.dir={folder}"], world_size=1)
    save_recipe(resolved, folder / "recipe.yaml")
    torch.manual_seed(seed)
    model = VisionLanguageModel(resolved, graph_needs(resolved).modules - {"decoder"})
    state = {name: value.detach() + 0.1 * torch.randn_like(value) for name, value in model.named_parameters()}
    save_file(state, folder / "model.safetensors")
    return folder


def run_tool(script: str, *arguments: object) -> int:
    """The exit code of a command line of the repository, run in this process."""
    before = sys.argv
    sys.argv = [script, *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    finally:
        sys.argv = before
    return left.value.code
