"""Runs with random weights on tiny shards."""

from pathlib import Path

import pytest
from random_run import write_random_run

from vlp.evaluation.encode import Subject, encode_subject
from vlp.run import load_run


@pytest.fixture(scope="session")
def small(tiny: list[str]) -> list[str]:
    """As `tiny`, with 16 patches a picture and all validation scenes."""
    return [*tiny, "model.vision.patch_size=8", "evaluation.samples=null", "evaluation.batch_size=20"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    """Of goldi_super, with text-conditioned pooling and a projection of its own for patches."""
    tasks = "evaluation.tasks=[retrieval, questions, segmentation]"
    return write_random_run(tmp_path_factory.mktemp("runs") / "goldi", "goldi_super", [*small, tasks])


@pytest.fixture(scope="session")
def subject(run: Path) -> Subject:
    return encode_subject(*load_run(run), patches=True)
