"""Recipes: YAML in, one checked `Recipe` out.

A recipe says which objectives train together, a scale says how large, on what and how long. They are
composed as scale < `extends` < recipe < `key=value` overrides; the last one wins.
"""

import functools
import json
import operator
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import yaml
from pydantic import Field, ValidationError

from vlp.errors import UserError, nearest
from vlp.files import write_text
from vlp.models.initial import initial_weights
from vlp.objectives import REGISTRY
from vlp.objectives.interface import Needs
from vlp.settings import (
    DataSettings,
    EngineSettings,
    EvaluationSettings,
    ModelSettings,
    RunSettings,
    Section,
    TrainSettings,
    ViewSettings,
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
    balance: Literal["fixed", "uncertainty"] = "fixed"
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
    def views(self) -> ViewSettings:
        """The distillation views with their sizes filled in, for recipes whose objectives read views."""
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
    resolved, own_scale = own.pop("resolved", False), own.get("scale", "demo")
    scale = next((value for key, value in reversed(changes) if key == ["scale"]), own_scale)
    if resolved and scale != own_scale:
        raise UserError(
            f"{path}: scale: given '{scale}', but this is a run's recipe, all of scale '{own_scale}' written out; "
            "give the recipe that the run was made from"
        )
    merged: dict[str, Any] = {"name": path.stem}
    for layer in [own] if resolved else [_load_scale(scale, path), own]:
        merged = merge(merged, layer)
    for key, value in changes:
        merged = merge(merged, _nest(key, value))
    merged["scale"] = Path(str(scale)).stem
    merged = _apply_objective_defaults(merged, path)
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error, merged)}") from None
    check(recipe, path, int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size)
    return recipe


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe; `load_recipe` on it gives an equal one."""
    write_text(path, "resolved: true\n" + recipe.to_yaml())


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` over it, mappings merged key by key; null removes an objective that `base` has."""
    merged = dict(base)
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            below, merged[key] = merged[key], merge(merged[key], value)
            if key == "objectives":
                merged[key] = {k: spec for k, spec in merged[key].items() if spec is not None or below.get(k) is None}
        else:
            merged[key] = value
    return merged


def check(recipe: Recipe, path: Path, world_size: int) -> None:
    """What one key alone cannot show. Raises `UserError`."""
    try:
        _check_split(recipe, world_size)
        _check_towers(recipe, _check_objectives(recipe))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _check_split(recipe: Recipe, world_size: int) -> None:
    batch, streams, accumulation = recipe.train.batch_size, recipe.data.streams, recipe.train.accumulation
    if streams % world_size:
        raise ValueError(
            f"data.streams: {streams} does not divide over {world_size} ranks; allowed are multiples of {world_size}"
        )
    pieces = streams * accumulation
    if batch % pieces:
        raise ValueError(
            f"train.batch_size: {batch} does not divide over data.streams={streams} x train.accumulation="
            f"{accumulation}; the nearest that does is {max(1, (batch + pieces // 2) // pieces) * pieces}"
        )


def _check_objectives(recipe: Recipe) -> Needs:
    """What the objectives read together, once nothing of it is missing."""
    needs, tasks = Needs(), {}
    for name, settings in recipe.objectives.items():
        objective = REGISTRY[settings.type]
        try:
            objective.check(recipe, settings)
            own = objective.needs(recipe, settings)
            for request in own.data.captions:
                if not any(getattr(recipe.data.fields, field) for field in request.fields):
                    raise ValueError(
                        f"captions: {request.kind} reads data.fields.{request.fields[-1]}, which is null; "
                        "name the key that holds them"
                    )
            for request in own.data.tasks:
                other = tasks.setdefault(request.name, name)
                if other != name:
                    raise ValueError(f"objectives.{other} is the same task in the same words; remove one of the two")
        except ValueError as error:
            raise ValueError(f"objectives.{name}: {error}") from None
        needs |= own
    return needs


def _check_towers(recipe: Recipe, needs: Needs) -> None:
    model, vision = recipe.model, recipe.model.vision
    if model.init:
        initial_weights(model.init)
    transformers = timm.list_models(module="vision_transformer")
    if vision.name.split(".")[0] not in transformers:
        raise ValueError(
            f"model.vision.name: timm has no vision transformer '{vision.name}'{nearest(vision.name, transformers)}"
        )
    sizes = {"model.vision.image_size": vision.image_size}
    if needs.data.view_share:
        views = recipe.views
        sizes |= {"data.views.global_size": views.global_size, "data.views.local_size": views.local_size}
    for key, size in sizes.items():
        if vision.patch_size and size % vision.patch_size:
            raise ValueError(f"{key}: {size} is not a multiple of model.vision.patch_size={vision.patch_size}")
    heads = [("model.vision.width", vision.width, "model.vision.heads", vision.heads)]
    if "text" in needs.modules:
        heads += [("model.text.width", model.text.width, "model.text.heads", model.text.heads)]
    for module in {"pooling", "decoder"} & needs.modules:
        heads += [("model.embed_dim", model.embed_dim, f"model.{module}.heads", getattr(model, module).heads)]
    for width_key, width, heads_key, count in heads:
        if width and count and width % count:
            raise ValueError(f"{heads_key}: {width_key}={width} does not divide over {count} heads")


def _parse_yaml(text: str) -> Any:
    """Raises yaml.YAMLError, ValueError (also for a value that contains itself) or RecursionError."""
    content = yaml.safe_load(text)
    json.dumps(content, skipkeys=True, default=str)  # finds the circle
    return content


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = _parse_yaml(path.read_text())
    except OSError as error:
        siblings = [str(file) for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        shipped = ", ".join(sorted(file.stem for file in SHIPPED_RECIPES.glob("*.yaml")))
        raise UserError(
            f"no recipe at {path} ({error.strerror}){nearest(str(path), siblings)}; "
            f"shipped are recipes/*.yaml: {shipped}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values; this file holds {content!r:.40}")
    return content


def _with_parents(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    content = _read_yaml(path)
    parent = content.pop("extends", None)
    if parent is None:
        return content
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends: given {parent!r:.80}; the path of one recipe belongs here")
    parent_path, children = path.parent / parent, (*children, path.resolve())
    if parent_path.resolve() in children:
        raise UserError(f"{path}: extends: {parent} is this recipe or extends it in turn; remove one of the two lines")
    if not parent_path.is_file():
        siblings = [file.name for file in path.parent.glob("*.yaml") if file != path]
        raise UserError(f"{path}: extends: no recipe at {parent_path}{nearest(parent, siblings)}")
    return merge(_with_parents(parent_path, children), content)


def _load_scale(scale: Any, recipe_path: Path) -> dict[str, Any]:
    folders = [recipe_path.parent / "scales", SHIPPED_RECIPES / "scales"]
    candidates = [Path(str(scale))] + [folder / f"{scale}.yaml" for folder in folders]
    for candidate in candidates:
        if candidate.suffix == ".yaml" and os.path.isfile(candidate):
            return _with_parents(candidate)
    names = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise UserError(
        f"{recipe_path}: scale: no scale '{scale}'{nearest(str(scale), names)}; "
        f"allowed are {', '.join(names)}, or the path of a YAML"
    )


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override '{text}' is not of the form dotted.key=value, as in train.steps=20")
    try:
        return key.split("."), _parse_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"override '{text}': the value is not YAML: {error}") from None


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _apply_objective_defaults(merged: dict[str, Any], path: Path) -> dict[str, Any]:
    """`objective_defaults: {TYPE: {...}}`, as a scale has them, lies under every objective of that type."""
    defaults = merged.pop("objective_defaults", None)
    for kind, values in _mapping(defaults, f"{path}: objective_defaults").items():
        if kind not in REGISTRY:
            raise UserError(
                f"{path}: objective_defaults: no objective type '{kind}'{nearest(str(kind), list(REGISTRY))}; "
                f"allowed are {', '.join(REGISTRY)}"
            )
        allowed = [key for key in REGISTRY[kind].Settings.model_fields if key != "type"]
        for key in _mapping(values, f"{path}: objective_defaults.{kind}"):
            if key not in allowed:
                raise UserError(
                    f"{path}: unknown key 'objective_defaults.{kind}.{key}'{nearest(str(key), allowed)}; "
                    f"allowed there are {', '.join(allowed)}"
                )
    objectives = merged.get("objectives")
    if defaults and isinstance(objectives, dict):
        merged["objectives"] = {
            name: merge(defaults.get(str(spec.get("type"))) or {}, spec) if isinstance(spec, dict) else spec
            for name, spec in objectives.items()
        }
    return merged


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where}: given {value!r:.80}; a mapping of keys to values belongs here")
    return value or {}


def _explain(error: ValidationError, given: dict[str, Any]) -> str:
    """One line for the first mistake: the key, what was given, what is allowed. A misspelt key comes before the
    key that is missing because of it."""
    first = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    keys, section = _locate(first["loc"])
    kind, value = first["type"], first.get("input")
    if kind == "boolean":
        keys, value = [*keys, first["ctx"]["key"]], first["ctx"]["value"]
    dotted, allowed = ".".join(keys), list(section.model_fields)
    if kind == "extra_forbidden":
        return f"unknown key '{dotted}'{nearest(keys[-1], allowed)}; allowed there are {', '.join(allowed)}"
    if keys[:1] == ["objectives"] and len(keys) == 2 and not (isinstance(value, dict) and "type" in value):
        others = [name for name in given["objectives"] if str(name) != keys[1]]
        return (
            f"{dotted}: given {value!r:.80}, and there is no such objective to change or remove"
            f"{nearest(keys[1], others)}; a new one needs a type: {', '.join(REGISTRY)}"
        )
    if kind == "union_tag_invalid":
        tag = str(value["type"])
        return f"{dotted}.type: no objective '{tag}'{nearest(tag, list(REGISTRY))}; allowed are {', '.join(REGISTRY)}"
    if kind == "missing":
        return f"{dotted}: this key is missing; add it"
    if kind in ("model_type", "dict_type"):
        return f"{dotted}: given {value!r:.80}; a mapping of keys to values belongs here"
    reason = first["msg"].removeprefix("Value error, ")
    if kind == "value_error" and isinstance(value, dict):  # about several keys of the section
        return f"{dotted}: {reason}"
    return f"{dotted}: given {value!r:.80}; {reason[0].lower()}{reason[1:]}"


def _locate(location: tuple[int | str, ...]) -> tuple[list[str], type[Section]]:
    """The key that pydantic's `location` lies in, without what follows inside its value, and the key's section."""
    section: type[Section] = Recipe
    keys, rest = [], [str(part) for part in location]
    if rest[:1] == ["objectives"]:
        keys, rest = rest[:2], rest[2:]
        if len(rest) > 1:  # the objective's type, then a key of it
            section, rest = REGISTRY[rest[0]].Settings, rest[1:]
        else:
            return keys, section
    while rest:
        keys.append(rest.pop(0))
        field = section.model_fields.get(keys[-1])
        parts = getattr(field.annotation, "__args__", (field.annotation,)) if field else ()
        inner = next((part for part in parts if isinstance(part, type) and issubclass(part, Section)), None)
        if inner is None:
            break
        section = inner if rest else section
    return keys, section
