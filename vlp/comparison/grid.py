"""The grid of a comparison, recipes x set values x seeds: every run resolved before the first one starts."""

import hashlib
import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from vlp.errors import UserError
from vlp.recipe import Recipe, load_recipe
from vlp.run import stored_difference
from vlp.settings import RunSettings

TRAIN = Path(__file__).resolve().parents[2] / "tools" / "train.py"
DECIDED = {"train.seed": "--seeds", "run.dir": "--out"}
LONGEST_NAME = 150


@dataclass(frozen=True)
class Run:
    """One training of the grid. The runs of a cell differ in their seed alone."""

    cell: str
    recipe: str
    settings: dict[str, str]
    seed: int
    steps: int
    batch_size: int
    folder: Path
    command: list[str]

    @property
    def name(self) -> str:
        return f"{self.cell}/{self.folder.name}"

    @property
    def finished(self) -> bool:
        return all((self.folder / file).is_file() for file in ("evaluation.json", "model.safetensors"))

    def progress(self) -> tuple[int, float]:
        """The last step that the run has logged, and the minutes of training up to it."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        except OSError:
            return 0, 0.0
        step, seconds = 0, 0.0
        for line in lines:
            try:
                metrics = json.loads(line)
            except ValueError:
                continue  # cut off when the run was killed
            seconds += (metrics["step"] - step) * metrics["step_seconds"]
            step = metrics["step"]
        return step, seconds / 60


def make_grid(
    recipes: Sequence[str],
    overrides: Sequence[str],
    sets: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    launcher: Sequence[str],
) -> tuple[list[Run], list[Recipe]]:
    """Every run and its resolved recipe, all cells under the first seed before any under the second.

    Args:
        recipes: paths of YAML files.
        overrides: `key=value` for all runs.
        sets: as `parse_set` takes them; each is one dimension of the grid.
        out: the folder of the comparison.
        launcher: the command before `tools/train.py`.

    Raises:
        UserError: for anything wrong with any run, also a folder that holds a run of another recipe.
    """
    dimensions = [parse_set(text) for text in sets]
    common = [text.partition("=")[0] for text in overrides]
    keys = [key for choices in dimensions for key in choices[0]]
    for key in [*common, *keys]:
        if key in DECIDED:
            raise UserError(f"{key}: {DECIDED[key]} decides it; leave it out of overrides and --set")
        if keys.count(key) + (key in common) > 1:
            raise UserError(f"--set {key}: this key is given twice; set it in one place")
    runs, resolved = [], []
    for seed in seeds:
        for path, *choice in itertools.product(recipes, *dimensions):
            settings = {key: value for part in choice for key, value in part.items()}
            arguments = [*overrides, *(f"{key}={value}" for key, value in settings.items()), f"train.seed={seed}"]
            recipe = load_recipe(path, arguments, world_size=1)
            if recipe.data.validation is None:
                raise UserError(f"{path}: data.validation: null; name the shards that the runs are compared on")
            cell = cell_name(recipe.name, settings)
            folder = out / cell / f"seed-{seed}"
            quoted = json.dumps(str(folder), ensure_ascii=False)
            command = [*launcher, str(TRAIN), path, *arguments, f"run.dir={quoted}"]
            train = recipe.train
            runs.append(Run(cell, recipe.name, settings, seed, train.steps, train.batch_size, folder, command))
            resolved.append(recipe.model_copy(update={"run": RunSettings(dir=str(folder))}))
    folders = [run.folder for run in runs]
    for run, recipe in zip(runs, resolved, strict=True):
        if folders.count(run.folder) > 1:
            raise UserError(f"{run.cell} is in the grid twice; give each value once, and each recipe a name of its own")
        if difference := stored_difference(recipe):
            raise UserError(
                f"{run.folder} holds a run of another recipe: {difference}; give another --out, or delete that folder"
            )
    return runs, resolved


def parse_set(text: str) -> list[dict[str, str]]:
    """The choices of one `--set`.

    `a=1,2` is [{a: 1}, {a: 2}]; keys tied by ` & ` change together: `a=1,2 & b=3,4` is [{a: 1, b: 3}, {a: 2, b: 4}].
    """
    values: dict[str, list[str]] = {}
    for part in re.split(r"\s&\s+(?=[^\s=&]+=)", text):
        key, equals, given = part.strip().partition("=")
        if not equals or not key:
            raise UserError(f"--set '{text}' is not of the form KEY=V1,V2, as in --set train.batch_size=24,48")
        if key in values:
            raise UserError(f"--set '{text}': {key} is given twice; set it in one place")
        values[key] = split_values(given)
    if len({len(column) for column in values.values()}) > 1:
        counts = ", ".join(f"{key} has {len(column)}" for key, column in values.items())
        raise UserError(f"--set '{text}': keys that change together need equally many values; {counts}")
    return [dict(zip(values, choice, strict=True)) for choice in zip(*values.values(), strict=True)]


def split_values(text: str) -> list[str]:
    """Cut at the commas that lie, for YAML, outside brackets and quotes. The values stay as they were written."""
    depth, commas = 0, [-1]
    try:
        for token in yaml.scan(f"[{text}]"):
            depth += isinstance(token, (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken))
            depth -= isinstance(token, (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken))
            if isinstance(token, yaml.FlowEntryToken) and depth == 1:
                commas.append(token.start_mark.index - 1)  # the bracket put before is not in the text
    except yaml.YAMLError as error:
        raise UserError(f"--set: the values '{text}' are not YAML: {error}") from None
    values = [text[start + 1 : end].strip() for start, end in itertools.pairwise([*commas, len(text)])]
    if depth or not all(values):
        what = "a bracket that is not closed" if depth else "an empty value; write null for none"
        raise UserError(f"--set: the values '{text}' have {what}")
    return values


def parse_seeds(text: str) -> list[int]:
    """`3` is the seeds 0, 1 and 2; `0,3,5` are these three; `7,` is the one seed 7."""
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*,?", text):
        raise UserError(f"--seeds {text}: allowed are a number, as 3 for the seeds 0,1,2, or a list, as 0,3,5")
    numbers = [int(number) for number in text.removesuffix(",").split(",")]
    seeds = numbers if "," in text else list(range(numbers[0]))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: at least one seed belongs here, and each once")
    return seeds


def parse_launcher(text: str | None) -> list[str]:
    """The words of a command; this Python when None."""
    if text is None:
        return [sys.executable]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--launcher '{text}': {error}") from None
    if not words or not shutil.which(words[0]):
        raise UserError(f"--launcher '{text}': no such command; give one as 'deepspeed --num_gpus 8'")
    return words


def cell_name(recipe: str, settings: dict[str, str]) -> str:
    """A folder name, `superclip,train.batch_size=24`. What does not fit in one is replaced, and a digest is added, so
    that names differ as cells do."""
    parts = [recipe, *(f"{key}={value}" for key, value in settings.items())]
    safe = [re.sub(r"[^A-Za-z0-9_.=+-]+|^\.+|^$", "-", part) for part in parts]
    name = ",".join(safe)
    if safe == parts and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(json.dumps([recipe, settings]).encode()).hexdigest()[:8]
    return f"{name[:LONGEST_NAME]}-{digest}"
