"""Shards with planted defects, and recipes that read them."""

import io
import json
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

from vlp.data_report.findings import Finding
from vlp.data_report.report import DataReport, check_data
from vlp.recipe import SHIPPED_RECIPES, Recipe, load_recipe

RECORD = {
    "raw": "alt text",
    "short": ["a small cat"],
    "long": ["A small cat. It sleeps on a mat."],
    "regions": [{"box": [0.25, 0.25, 0.75, 0.75], "phrase": "small cat", "score": 0.9}],
    "vqa": [{"question": "what sleeps?", "answer": "the cat"}],
}
SIZE = 32
"""Pixels of the model's input."""


def picture(number: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture of one colour, another for every number."""
    stream = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 7)).save(stream, "PNG")
    return stream.getvalue()


def sample(number: int, record: Any = None, **files: bytes | None) -> dict[str, Any]:
    """Sample `number` with captions of its own; `record` changes its JSON, `files` its files (None takes one out)."""
    own = RECORD | {
        "raw": f"alt text {number}",
        "short": [f"small cat {number}"],
        "long": [f"Cat {number} is. It sits."],
    }
    body = own | (record or {})
    made = {"__key__": f"k{number:03d}", "png": picture(number), "json": json.dumps(body).encode()} | files
    return {name: data for name, data in made.items() if data is not None}


def write_shard(path: Path, samples: list[dict[str, Any]]) -> Path:
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for files in samples:
            tar.write(files)
    return path


def write_shards(folder: Path, samples: list[dict[str, Any]], shards: int = 2) -> Path:
    """The samples dealt out to `shards` files."""
    for shard in range(shards):
        write_shard(folder / f"{shard}.tar", samples[shard::shards])
    return folder


def make_recipe(folder: Path, *overrides: str, name: str = "goldi_super") -> Recipe:
    return load_recipe(SHIPPED_RECIPES / f"{name}.yaml", [*tiny_overrides(folder), *overrides], world_size=1)


def tiny_overrides(folder: Path) -> list[str]:
    return [
        *(f"data.train={folder}/*.tar", "data.validation=null", "data.workers=1", "data.streams=2", "data.shuffle=8"),
        *(f"model.vision.image_size={SIZE}", "train.batch_size=32"),
        "data.views={global_count: 2, local_count: 1, local_size: 16}",
    ]


def check(recipe: Recipe, samples: int = 1000, ranks: int = 1) -> DataReport:
    return check_data(recipe, samples, 0, ranks)[0]


def by_problem(report: DataReport) -> dict[str, Finding]:
    """The findings; that a task has nothing is told for each task of its own."""
    findings = {finding.problem: finding for finding in report.findings}
    told_once = [finding for finding in report.findings if finding.problem != "no_task"]
    assert len(told_once) == len(findings.keys() - {"no_task"})
    return findings
