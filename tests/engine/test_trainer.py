"""The loop on real shards: ranks and stages agree, stopping and resuming changes nothing, broken runs say so."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import spawn_ranks
from safetensors.torch import load_file

from vlp.recipe import load_recipe

STEPS = 5
OBJECTIVES = ["retrieval", "classification", "distillation", "caption", "referring", "grounded", "vqa"]
LATE = ["distillation", "masked"]
"""Objectives of siglip2_style that begin in the middle of the training."""

ALONE = {
    "goldi_super": ["engine.zero_stage=0"],
    "siglip2_style": [f"objectives.{name}={{starts_at: 0.5, share: 1, prototypes: 64}}" for name in LATE],
}
"""Runs of one process, by recipe."""

SPLITS = {
    **{f"stage{stage}": ("goldi_super", [f"engine.zero_stage={stage}"]) for stage in range(4)},
    **{
        f"stage{stage}_accumulated": ("goldi_super", [f"engine.zero_stage={stage}", "train.accumulation=2"])
        for stage in (0, 2, 3)
    },
    "late_stage3_accumulated": (
        "siglip2_style",
        [*ALONE["siglip2_style"], "engine.zero_stage=3", "train.accumulation=2"],
    ),
}
"""Runs of two ranks: the recipe whose run of one process they equal, and overrides."""


def run_all(recipes: str, overrides: list[str], runs: dict[str, tuple[str, list[str]]]) -> None:
    """In a spawned rank: one training run after another, each a recipe and more overrides, by its folder."""
    from vlp.engine.trainer import train

    for folder, (recipe, more) in runs.items():
        train(load_recipe(f"{recipes}/{recipe}.yaml", [*overrides, *more, f"run.dir={folder}"]))


def read_metrics(folder: Path | str) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def exact_part(line: dict) -> dict:
    """What a run computes, without what it measures of the machine."""
    measured = {"samples_per_second", "step_seconds", "data_wait_fraction", "peak_memory_bytes"}
    return {key: value for key, value in line.items() if key not in measured}


@pytest.fixture(scope="module")
def overrides(tiny: list[str]) -> list[str]:
    # a large eps: with the usual one Adam turns rounding differences of vanishing gradients into whole steps
    return [*tiny, f"train.steps={STEPS}", "train.checkpoint_every=2", "train.batch_size=16", "train.eps=1e-3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(repository: Path, overrides: list[str], folder: Path) -> dict[str, Path]:
    runs = {str(folder / recipe): (recipe, more) for recipe, more in ALONE.items()}
    spawn_ranks(run_all, 1, str(repository / "recipes"), overrides, runs)
    return {recipe: folder / recipe for recipe in ALONE}


@pytest.fixture(scope="module")
def single(alone: dict[str, Path]) -> Path:
    return alone["goldi_super"]


@pytest.fixture(scope="module")
def pairs(repository: Path, overrides: list[str], folder: Path) -> dict[str, Path]:
    runs = {str(folder / name): run for name, run in SPLITS.items()}
    spawn_ranks(run_all, 2, str(repository / "recipes"), overrides, runs)
    return {name: folder / name for name in SPLITS}


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_no_split_and_no_stage_changes_losses(split: str, alone: dict[str, Path], pairs: dict[str, Path]):
    ours, reference = read_metrics(pairs[split]), read_metrics(alone[SPLITS[split][0]])
    assert [line["step"] for line in ours] == [line["step"] for line in reference] == list(range(1, STEPS + 1))
    for line, expected in zip(ours, reference, strict=True):
        for key in expected:
            if key.split("/")[0] in ("loss", "weight"):
                assert line[key] == pytest.approx(expected[key], rel=2e-4), (line["step"], key)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_no_split_and_no_stage_changes_weights(split: str, alone: dict[str, Path], pairs: dict[str, Path]):
    ours, reference = (load_file(path / "model.safetensors") for path in (pairs[split], alone[SPLITS[split][0]]))
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_an_objective_begins_at_its_share_of_the_training(alone: dict[str, Path]):
    lines = read_metrics(alone["siglip2_style"])
    for name in LATE:
        assert [line[f"loss/{name}"] > 0 for line in lines] == [False, False, False, True, True]
        assert [line[f"weight/{name}"] > 0 for line in lines] == [False, False, False, True, True]


@pytest.mark.slow
def test_a_run_writes_what_the_readme_says(single: Path):
    assert all(f"loss/{name}" in read_metrics(single)[0] for name in OBJECTIVES)
    written = {path.name for path in single.iterdir()}
    assert {"recipe.yaml", "metrics.jsonl", "evaluation.json", "checkpoints", "model.safetensors"} <= written
    line = read_metrics(single)[-1]
    for key in ("step", "samples", "epoch", "loss", "lr", "grad_norm", "samples_per_second", "peak_memory_bytes"):
        assert key in line
    assert "data_wait_fraction" in line
    assert not any(name.startswith(("decoder", "teacher")) for name in load_file(single / "model.safetensors"))
    retrieval = json.loads((single / "evaluation.json").read_text())["retrieval"]
    assert set(retrieval["short"]) == {"agnostic", "conditioned"}
    assert len(list((single / "checkpoints").iterdir())) == 2


@pytest.mark.slow
def test_the_launcher_killed_and_started_again_gives_the_same_metrics(
    repository: Path, overrides: list[str], pairs: dict[str, Path], folder: Path
):
    """End to end through `deepspeed`, two ranks, stage 2: SIGKILL after the first checkpoint, then the same command."""
    run = folder / "killed"
    command = [
        str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "tools/train.py",
        "recipes/goldi_super.yaml", *overrides, "engine.zero_stage=2", f"run.dir={run}",
    ]  # fmt: skip
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        command,
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    while not list((run / "checkpoints").glob("step-00000002")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read().decode()[-2000:]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(["pkill", "-9", "-f", str(run)], check=False)
    process.wait()
    assert not (run / "model.safetensors").exists(), "it was killed too late to show anything"

    again = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    resumed, straight = read_metrics(run), read_metrics(pairs["stage2"])
    assert [line["step"] for line in resumed] == list(range(1, STEPS + 1))
    for line, expected in zip(resumed, straight, strict=True):
        assert exact_part(line) == pytest.approx(exact_part(expected), rel=1e-6)


@pytest.mark.slow
def test_a_checkpoint_cut_short_is_named(single: Path, repository: Path, overrides: list[str], folder: Path):
    from vlp.engine.checkpoint import check_checkpoint, list_checkpoints
    from vlp.errors import UserError

    newest = list_checkpoints(single / "checkpoints")[-1]
    assert check_checkpoint(newest, ranks=1, zero_stage=0)["step"] == STEPS
    with pytest.raises(UserError, match=r"written by 1 ranks at engine.zero_stage=0, now 2 ranks at 0; resume"):
        check_checkpoint(newest, ranks=2, zero_stage=0)
    states = next(newest.glob("*model_states.pt"))
    whole = states.read_bytes()
    states.write_bytes(whole[: len(whole) // 2])
    try:
        with pytest.raises(UserError, match=r"checkpoint is cut short: .*model_states.pt has \d+ of \d+ bytes; delete"):
            check_checkpoint(newest, ranks=1, zero_stage=0)
    finally:
        states.write_bytes(whole)
