"""Runs with random weights, and one of them exported."""

from pathlib import Path

import pytest
from random_run import run_tool, write_random_run


@pytest.fixture(scope="session")
def three_blocks(tiny: list[str]) -> list[str]:
    """As `tiny`, with 16 patches a picture and three blocks, recomputed in training."""
    return [*tiny, "model.vision.patch_size=8", "model.vision.depth=3", "engine.activation_checkpointing=true"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, three_blocks: list[str]) -> Path:
    return write_random_run(tmp_path_factory.mktemp("runs") / "goldi", "goldi_super", three_blocks)


@pytest.fixture(scope="session")
def exported(run: Path) -> Path:
    """The run exported to ONNX by the command line."""
    out = run.parent / "onnx"
    assert run_tool("export/to_onnx.py", run, "--out", out) == 0
    return out
