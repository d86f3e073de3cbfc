"""A run's folder: made for one recipe, read back without DeepSpeed."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from vlp.errors import UserError
from vlp.files import write_text
from vlp.models.model import ONLY_FOR_TRAINING, VisionLanguageModel
from vlp.objectives.graph import graph_needs
from vlp.recipe import Recipe, load_recipe, save_recipe

MAY_CHANGE = ("run", "engine.deepspeed", "data.workers", "data.cache", "train.log_every", "train.checkpoint_every",
              "train.keep_checkpoints", "evaluation")  # fmt: skip
"""Keys that a resumed run may set anew: none of them changes what is computed."""

AFTER_TRAINING = ("data.validation", "data.cache", "data.fields", "evaluation")
"""Keys that evaluation and export may set anew: none of them is part of what was trained."""


def open_run(recipe: Recipe) -> Path:
    """The recipe's run folder, made if it is not there.

    Raises:
        UserError: when the folder holds a run of another recipe.
    """
    folder = recipe.run_dir
    stored = folder / "recipe.yaml"
    if difference := stored_difference(recipe):
        raise UserError(
            f"{folder} holds a run of another recipe: {difference}; give another run.dir=, or delete that folder"
        )
    if _has_begun(folder):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, stored)
    except OSError as error:
        raise UserError(f"run.dir: cannot write {folder} ({error.strerror}); give another run.dir=") from None
    return folder


def keep_shards(folder: Path, shards: list[str], resumes: bool) -> None:
    """Keep the names of the training shards in the run's `shards.txt`: positions are places in their order.

    Raises:
        UserError: when the run resumes, and they are not the shards that it began with.
    """
    path, names = folder / "shards.txt", [Path(shard).name for shard in shards]
    if not resumes or not path.exists():
        write_text(path, "".join(f"{name}\n" for name in names))
        return
    before = path.read_text().splitlines()
    if names != before:
        changed = sorted(set(before) ^ set(names)) or names
        raise UserError(
            f"data.train: the run in {folder} began with {len(before)} shards and finds {len(names)} now, another one "
            f"is {changed[0]}; bring back those of {path}, or give another run.dir"
        )


def stored_difference(recipe: Recipe) -> str:
    """How the run in the recipe's folder differs from it, in words; empty when it does not, or none has begun there."""
    stored = recipe.run_dir / "recipe.yaml"
    if not _has_begun(recipe.run_dir):
        return ""
    differences = _differences(load_recipe(stored).model_dump(mode="json"), recipe.model_dump(mode="json"))
    if not differences:
        return ""
    key, (was, now) = next(iter(differences.items()))
    more = f" and {len(differences) - 1} more keys" if len(differences) > 1 else ""
    return f"{key} is {was} there and {now} here{more}"


def _has_begun(folder: Path) -> bool:
    """A command that was refused after the folder was made leaves nothing but its recipe there."""
    return (folder / "recipe.yaml").exists() and any(
        (folder / name).exists() for name in ("metrics.jsonl", "checkpoints", "model.safetensors")
    )


def load_run(folder: str | Path, overrides: list[str] | None = None) -> tuple[Recipe, VisionLanguageModel]:
    """The recipe and the trained student of a run folder, on the CPU, in evaluation mode.

    Args:
        overrides: `dotted.key=value` strings for `AFTER_TRAINING` keys, what a trained student can be given anew.

    Raises:
        UserError: when the folder is none of a run, training has not finished, or the weights are not whole.
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder} is no run: it has no recipe.yaml; give the folder that tools/train.py printed")
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} has no model.safetensors yet; run the same training command again to finish it")
    for text in overrides or []:
        if not any(text.startswith((f"{key}.", f"{key}=")) for key in AFTER_TRAINING):
            raise UserError(f"override '{text}': a trained run takes only {', '.join(AFTER_TRAINING)}")
    recipe = load_recipe(folder / "recipe.yaml", overrides, world_size=1)
    try:
        return recipe, build_student(recipe, load_file(folder / "model.safetensors"))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder / 'model.safetensors'}: not the weights of this run's recipe ({error!s:.120}); "
            "run the same training command again to write them anew"
        ) from None


def build_student(recipe: Recipe, state: dict[str, Any]) -> VisionLanguageModel:
    """The student with what is left of it after training, from consolidated weights."""
    model = VisionLanguageModel(recipe, graph_needs(recipe).modules - ONLY_FOR_TRAINING)
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
