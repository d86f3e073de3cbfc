"""A run's folder: made for one recipe, read back without DeepSpeed."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from vlp.errors import UserError
from vlp.models.model import VisionLanguageModel
from vlp.objectives.graph import graph_needs
from vlp.recipe import Recipe, load_recipe, save_recipe

MAY_CHANGE = ("run", "engine.deepspeed", "data.workers", "data.cache", "train.log_every", "train.checkpoint_every",
              "train.keep_checkpoints", "evaluation")  # fmt: skip
"""Keys that a resumed run may set anew: none of them changes what is computed."""


def open_run(recipe: Recipe) -> Path:
    """The recipe's run folder, made if it is not there.

    Raises:
        UserError: when the folder holds a run of another recipe.
    """
    folder = recipe.run_dir
    stored = folder / "recipe.yaml"
    if stored.exists():
        differences = _differences(load_recipe(stored).model_dump(mode="json"), recipe.model_dump(mode="json"))
        if differences:
            key, (was, now) = next(iter(differences.items()))
            more = f" and {len(differences) - 1} more keys" if len(differences) > 1 else ""
            raise UserError(
                f"{folder} holds a run of another recipe: {key} is {was} there and {now} here{more}; "
                "give another run.dir=, or delete that folder"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, stored)
    return folder


def load_run(folder: str | Path) -> tuple[Recipe, VisionLanguageModel]:
    """The recipe and the trained student of a run folder, on the CPU, in evaluation mode.

    Raises:
        UserError: when the folder is none of a run, or training has not finished.
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder} is no run: it has no recipe.yaml; give the folder that tools/train.py printed")
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} has no model.safetensors yet; run the same training command again to finish it")
    recipe = load_recipe(folder / "recipe.yaml")
    return recipe, build_student(recipe, load_file(folder / "model.safetensors"))


def build_student(recipe: Recipe, state: dict[str, Any]) -> VisionLanguageModel:
    """The student with what is left of it after training, from consolidated weights."""
    model = VisionLanguageModel(recipe, graph_needs(recipe).modules - {"decoder"})
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def _differences(was: Any, now: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    if any(key == free or key.startswith(free + ".") for free in MAY_CHANGE):
        return {}
    if isinstance(was, dict) and isinstance(now, dict):
        found = {}
        for name in sorted(was.keys() | now.keys()):
            found |= _differences(was.get(name), now.get(name), f"{key}.{name}".strip("."))
        return found
    return {} if was == now else {key: (was, now)}
