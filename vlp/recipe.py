"""Recipes: YAML in, one checked `Recipe` out.

A recipe says which objectives train together, a scale says how large, on what and how long. They are
composed as scale < `extends` < recipe < `key=value` overrides; the last one wins.
"""

import functools
import operator
import os
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from vlp.errors import UserError, nearest
from vlp.objectives import REGISTRY
from vlp.settings import (
    DataSettings,
    EngineSettings,
    EvaluationSettings,
    ModelSettings,
    RunSettings,
    Section,
    TrainSettings,
)

SHIPPED_RECIPES = Path(__file__).resolve().parents[1] / "recipes"
AnyObjective = Annotated[
    functools.reduce(operator.or_, (objective.Settings for objective in REGISTRY.values())), Field(discriminator="type")
]


class Recipe(Section):
    """A resolved recipe: every default written out."""

    name: str
    scale: str
    objectives: dict[str, AnyObjective] = Field(min_length=1)
    balance: str = Field("fixed", pattern="^(fixed|uncertainty)$", description="fixed or uncertainty")
    run: RunSettings = RunSettings()
    train: TrainSettings = TrainSettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir or f"runs/{self.name}-{self.scale}")

    @property
    def views(self):
        """The distillation views with their sizes filled in."""
        size = self.data.views.global_size or self.model.vision.image_size
        return self.data.views.model_copy(update={"global_size": size})

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=110)


def load_recipe(path: str | Path, overrides: list[str] | None = None, world_size: int | None = None) -> Recipe:
    """Load, compose and check the recipe at `path`.

    Args:
        path: a recipe's YAML, or a run's `recipe.yaml` (already resolved).
        overrides: `dotted.key=value` strings, the value parsed as YAML.
        world_size: ranks that the batch must divide over; `$WORLD_SIZE` or 1 when None.

    Raises:
        UserError: for anything wrong with it, naming file, key, what was given and what is allowed.
    """
    path = Path(path)
    own = _with_parents(path)
    changes = [_parse_override(text) for text in overrides or []]
    scale = next((value for key, value in reversed(changes) if key == ["scale"]), own.get("scale", "demo"))
    layers = [own] if own.pop("resolved", False) and scale == own.get("scale") else [_load_scale(scale, path), own]
    merged: dict[str, Any] = {"name": path.stem}
    for layer in layers:
        merged = merge(merged, layer)
    for key, value in changes:
        merged = merge(merged, _nest(key, value))
    merged["scale"] = Path(str(scale)).stem
    merged = _apply_objective_defaults(merged)
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error, merged)}") from None
    check(recipe, path, int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size)
    return recipe


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe; `load_recipe` on it gives an equal one."""
    partial = path.with_suffix(".partial")
    partial.write_text("resolved: true\n" + recipe.to_yaml())
    os.replace(partial, path)


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` over it, mappings merged key by key; an objective set to null is removed."""
    merged = dict(base)
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    if isinstance(merged.get("objectives"), dict):
        merged["objectives"] = {name: spec for name, spec in merged["objectives"].items() if spec is not None}
    return merged


def check(recipe: Recipe, path: Path, world_size: int) -> None:
    """What one key alone cannot show. Raises `UserError`."""
    batch, streams = recipe.train.batch_size, recipe.data.streams
    pieces = streams * recipe.train.accumulation
    if streams % world_size:
        raise UserError(
            f"{path}: data.streams: {streams} does not divide over {world_size} ranks; "
            f"allowed are multiples of {world_size}"
        )
    if batch % pieces:
        raise UserError(
            f"{path}: train.batch_size: {batch} does not divide over data.streams={streams} x "
            f"train.accumulation={recipe.train.accumulation}; the nearest that does is "
            f"{max(1, round(batch / pieces)) * pieces}"
        )
    vision = recipe.model.vision
    if vision.patch_size and vision.image_size % vision.patch_size:
        raise UserError(
            f"{path}: model.vision.image_size: {vision.image_size} is not a multiple of patch_size={vision.patch_size}"
        )
    for name, settings in recipe.objectives.items():
        try:
            REGISTRY[settings.type].check(recipe, settings)
        except ValueError as error:
            raise UserError(f"{path}: objectives.{name}: {error}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        siblings = [str(file) for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        shipped = ", ".join(sorted(file.stem for file in SHIPPED_RECIPES.glob("*.yaml")))
        raise UserError(
            f"no recipe at {path}{nearest(str(path), siblings)}; shipped are recipes/*.yaml: {shipped}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values; this file holds {content!r:.40}")
    return content


def _with_parents(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    content = _read_yaml(path)
    parent = content.pop("extends", None)
    if parent is None:
        return content
    parent_path = path.parent / parent
    if parent_path in seen:
        raise UserError(f"{path}: extends: {parent} extends this recipe in turn; remove one of the two")
    return merge(_with_parents(parent_path, (*seen, path)), content)


def _load_scale(scale: str, recipe_path: Path) -> dict[str, Any]:
    folders = [recipe_path.parent / "scales", SHIPPED_RECIPES / "scales"]
    candidates = [Path(str(scale))] + [folder / f"{scale}.yaml" for folder in folders]
    for candidate in candidates:
        if candidate.suffix == ".yaml" and candidate.is_file():
            return _with_parents(candidate)
    names = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise UserError(f"{recipe_path}: scale: no scale '{scale}'; allowed are {', '.join(names)}, or the path of a YAML")


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override '{text}' is not of the form dotted.key=value, as in train.steps=20")
    try:
        return key.split("."), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"override '{text}': the value is not YAML: {error}") from None


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _apply_objective_defaults(merged: dict[str, Any]) -> dict[str, Any]:
    """A scale's `objective_defaults: {TYPE: {...}}` lies under every objective of that type."""
    defaults = merged.pop("objective_defaults", {})
    for kind in defaults:
        if kind not in REGISTRY:
            raise UserError(
                f"scale '{merged['scale']}': objective_defaults: no objective type '{kind}'"
                f"{nearest(kind, list(REGISTRY))}"
            )
    objectives = merged.get("objectives")
    if isinstance(objectives, dict):
        merged["objectives"] = {
            name: merge(defaults.get(spec.get("type"), {}), spec) if isinstance(spec, dict) else spec
            for name, spec in objectives.items()
        }
    return merged


def _explain(error: ValidationError, given: dict[str, Any]) -> str:
    """One line for the first mistake: the key, what was given, what is allowed."""
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"]]
    if len(keys) > 2 and keys[0] == "objectives" and keys[2] in REGISTRY:
        del keys[2]
    dotted = ".".join(keys)
    kind, value = first["type"], first.get("input")
    if kind == "extra_forbidden":
        allowed = _allowed_keys(keys[:-1], given)
        return f"unknown key '{dotted}'{nearest(keys[-1], allowed)}; allowed there are {', '.join(allowed)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = value.get("type") if isinstance(value, dict) else value
        return (
            f"{dotted}.type: no objective '{tag}'{nearest(str(tag), list(REGISTRY))}; allowed are {', '.join(REGISTRY)}"
        )
    if kind == "missing":
        return f"{dotted}: this key is missing; add it"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{dotted}: given {value!r:.80}; {reason[0].lower()}{reason[1:]}"


def _allowed_keys(keys: list[str], given: dict[str, Any]) -> list[str]:
    if keys[:1] == ["objectives"] and len(keys) > 1:
        spec = given["objectives"][keys[1]]
        section: type[BaseModel] = REGISTRY[spec["type"]].Settings
        keys = keys[2:]
    else:
        section = Recipe
    for key in keys:
        annotation = section.model_fields[key].annotation
        parts = getattr(annotation, "__args__", ()) or (annotation,)
        section = next(part for part in parts if isinstance(part, type) and issubclass(part, BaseModel))
    return list(section.model_fields)
