"""The papers' scales build and take one step as they stand: only data, batch and steps are overridden."""

import json
import math
import shutil
from pathlib import Path

import pytest
from ranks import spawn_ranks

from vlp.recipe import load_recipe

# one recipe for each scale; together they build every module at the papers' sizes
PAIRS = {"cc3m": "flair", "open30m": "goldi_super", "datacomp_b16": "clip", "datacomp_l16": "superclip"}


def run_one_step(recipe: str, overrides: list[str]) -> None:
    from vlp.engine.trainer import train

    train(load_recipe(recipe, overrides))


def test_every_shipped_scale_is_here(repository: Path):
    assert {path.stem for path in (repository / "recipes/scales").glob("*.yaml")} == {"demo", *PAIRS}


@pytest.mark.slow
@pytest.mark.parametrize("scale", PAIRS)
def test_a_shipped_scale_takes_a_step(scale: str, repository: Path, tiny_shards: Path, tmp_path: Path):
    overrides = [
        f"scale={scale}",
        f"run.dir={tmp_path}/run",
        f"data.train={tiny_shards}/train-*.tar",
        f"data.validation={tiny_shards}/validation-*.tar",
        "data.streams=2",
        "data.workers=0",
        "train.batch_size=2",
        "train.steps=1",
        "evaluation.samples=4",
    ]
    spawn_ranks(run_one_step, 1, str(repository / f"recipes/{PAIRS[scale]}.yaml"), overrides)
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert math.isfinite(line["loss"])
    assert math.isfinite(line["grad_norm"])
    assert line["grad_norm"] > 0
    shutil.rmtree(tmp_path / "run")  # a checkpoint of gigabytes
