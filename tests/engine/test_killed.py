"""A run that is killed again and again, and goes on with other workers, reads each sample of an epoch once."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

STREAMS, SHARD, BATCH, STEPS = 6, 16, 12, 16
"""Two epochs of 8 steps; 6 streams are shared out to 2 or 3 workers."""

RUN = """
import sys, time
from pathlib import Path
from vlp.engine import trainer
from vlp.recipe import load_recipe

make_loader, seen = trainer.make_loader, Path(sys.argv[1])

def recorded(recipe, needs, rank, ranks, positions, step):
    for number, loaded in enumerate(make_loader(recipe, needs, rank, ranks, positions, step), start=step):
        colours = loaded.batch.images_B3HW[:, :2, 0, 0].tolist()
        with seen.open("a") as file:
            file.write(f"{number}:{','.join(str(16 * red + green) for red, green in colours)}\\n")
        yield loaded
        time.sleep(0.1)

trainer.make_loader = recorded
trainer.train(load_recipe(sys.argv[2], sys.argv[3:], world_size=1))
"""


def write_shards(folder: Path) -> None:
    """Pictures of one colour, which tells their number."""
    for shard in range(STREAMS):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for number in range(shard * SHARD, (shard + 1) * SHARD):
                pixels = np.full((16, 16, 3), (number // 16, number % 16, 0), dtype=np.uint8)
                picture = Image.fromarray(pixels)
                tar.write({"__key__": f"{number:03d}", "png": picture, "json": {"short": [f"picture {number}"]}})


@pytest.mark.slow
def test_no_sample_twice_and_none_lost(tmp_path: Path, repository: Path, tiny: list[str]) -> None:
    write_shards(tmp_path)
    seen, log = tmp_path / "seen", tmp_path / "log"
    seen.touch()
    overrides = [
        *(*tiny, f"data.train={tmp_path}/*.tar", "data.validation=null", f"data.streams={STREAMS}"),
        *(f"train.batch_size={BATCH}", f"train.steps={STEPS}", "train.checkpoint_every=1"),
        f"run.dir={tmp_path}/run",
    ]
    rng, history = random.Random(7), []
    for attempt, workers in enumerate([2, 2, 3, 3, 2, 3]):
        last = attempt == 5
        command = [sys.executable, "-c", RUN, seen, repository / "recipes/clip.yaml", *overrides]
        with log.open("a") as output:
            process = subprocess.Popen(
                [*map(str, command), f"data.workers={workers}"],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        before, deadline = len(seen.read_text().splitlines()), time.monotonic() + 300
        while not last and process.poll() is None and len(seen.read_text().splitlines()) < before + 2:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        if last:
            assert process.wait(300) == 0, log.read_text()
        else:
            time.sleep(rng.uniform(0, 0.3))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        history.append([line.split(":") for line in seen.read_text().splitlines()[before:]])

    steps: dict[int, list[int]] = {}
    for part in history:  # what a killed run did after its newest checkpoint, the next one does again
        assert int(part[0][0]) <= len(steps)
        for step, numbers in part:
            steps[int(step)] = [int(number) for number in numbers.split(",")]
    assert sorted(steps) == list(range(STEPS)) and len(history[0]) < STEPS
    everything = list(range(STREAMS * SHARD))
    for epoch in (range(STEPS // 2), range(STEPS // 2, STEPS)):
        assert sorted(number for step in epoch for number in steps[step]) == everything
