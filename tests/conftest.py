"""Shared by all tests: tiny emoji shards, and overrides that make any demo recipe tiny."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from vlp.data.emoji_shards import DemoSet, write_demo_set

settings.register_profile("ci", derandomize=True)  # a landing does not hang on the day's luck
settings.load_profile("ci" if os.environ.get("CI") else "default")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 4 training shards of 24 scenes, 48 validation scenes, their classes and questions."""
    folder = tmp_path_factory.mktemp("shards") / "emoji"
    write_demo_set(folder, DemoSet(train=96, validation=48, side=64, shard_size=24, questions=10))
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_shards: Path) -> list[str]:
    """Overrides: tiny towers and batches on the tiny shards."""
    return [
        f"data.train={tiny_shards}/train-*.tar",
        f"data.validation={tiny_shards}/validation-*.tar",
        "data.workers=0",
        "data.streams=2",
        "data.shuffle=8",
        "data.views.local_size=16",
        "model.embed_dim=32",
        "model.vision.image_size=32",
        "model.vision.patch_size=16",
        "model.vision.width=32",
        "model.vision.depth=2",
        "model.vision.heads=2",
        "model.text.width=32",
        "model.text.layers=2",
        "model.text.heads=2",
        "model.pooling.heads=2",
        "model.decoder.layers=2",
        "model.decoder.heads=2",
        "train.batch_size=8",
        "train.steps=4",
        "train.warmup_steps=2",
        "train.log_every=1",
        "evaluation.samples=16",
        "evaluation.tasks=[retrieval]",
    ]
