"""The papers' scales build and take one step as they stand: only data, batch and steps are overridden."""

import json
import math
from pathlib import Path

import pytest
from ranks import spawn_ranks

from vlp.recipe import load_recipe

# one recipe for each scale; together they build every module at the papers' sizes
PAIRS = {"cc3m": "flair", "open30m": "goldi_super", "datacomp_b16": "clip", "datacomp_l16": "superclip"}


def run_one_step(runs: dict[str, tuple[str, list[str]]]) -> None:
    from vlp.engine.trainer import train

    for folder, (recipe, overrides) in runs.items():
        train(load_recipe(recipe, [*overrides, f"run.dir={folder}"]))


@pytest.mark.slow
def test_every_shipped_scale_takes_a_step(repository: Path, tiny_shards: Path, tmp_path: Path):
    scales = {path.stem for path in (repository / "recipes/scales").glob("*.yaml")} - {"demo"}
    assert scales == set(PAIRS)
    runs = {}
    for scale, recipe in PAIRS.items():
        runs[str(tmp_path / scale)] = (
            str(repository / f"recipes/{recipe}.yaml"),
            [
                f"scale={scale}",
                f"data.train={tiny_shards}/train-*.tar",
                f"data.validation={tiny_shards}/validation-*.tar",
                "data.streams=2",
                "data.workers=0",
                "train.batch_size=2",
                "train.steps=1",
                "evaluation.samples=4",
            ],
        )
    spawn_ranks(run_one_step, 1, runs)
    for folder in runs:
        line = json.loads((Path(folder) / "metrics.jsonl").read_text())
        assert math.isfinite(line["loss"])
        assert math.isfinite(line["grad_norm"])
        assert line["grad_norm"] > 0
