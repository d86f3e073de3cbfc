"""Images per second of the recipe's loader on this machine, and how many workers a rate needs."""

import math
import os
import time
from dataclasses import dataclass

from vlp.data.loader import make_loader
from vlp.data.sources import training_mixture
from vlp.data_report.findings import Finding
from vlp.data_report.reading import with_data
from vlp.errors import UserError
from vlp.objectives.graph import graph_needs
from vlp.recipe import Recipe

RATES = (250, 500, 1000, 2000)
EACH = 16
"""Largest number of images of one reader in a micro-batch, so that the first one comes soon."""
SHUFFLE = 64
"""Largest shuffle buffer, likewise; in the long run its length costs nothing."""
WARMUP = 3
"""Micro-batches before the clock starts: those that the workers make ahead."""


@dataclass(frozen=True)
class Speed:
    """What `workers` processes (0: the training process itself) gave together."""

    workers: int
    images: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def each(self) -> float:
        """Images per second and worker."""
        return self.rate / max(1, self.workers)


def measure(recipe: Recipe, seconds: float) -> list[Speed]:
    """The loader with one worker and with `data.workers` of them, each for about `seconds` after warm-up.

    One stream a worker: more only take turns. All objectives read, also those that start later.

    Raises:
        UserError: when the loader stops.
    """
    shards = len(training_mixture(with_data(recipe, streams=1)))
    return [_measure(recipe, workers, seconds) for workers in sorted({1, min(recipe.data.workers, shards)})]


def _measure(recipe: Recipe, workers: int, seconds: float) -> Speed:
    needs, streams = graph_needs(recipe).data, max(1, workers)
    train, data = recipe.train, recipe.data
    each = min(EACH, max(1, train.batch_size // (train.accumulation * data.streams)))
    changed = recipe.model_copy(
        update={"train": train.model_copy(update={"batch_size": each * streams, "accumulation": 1})}
    )
    changed = with_data(changed, workers=workers, streams=streams, shuffle=min(SHUFFLE, data.shuffle))
    loader = make_loader(changed, lambda step: needs, rank=0, ranks=1, positions={}, step=0)
    for _ in range(WARMUP):
        next(loader)
    images, passed, begin = 0, 0.0, time.perf_counter()
    while passed < seconds or not images:
        images += len(next(loader).batch)
        passed = time.perf_counter() - begin
    return Speed(workers, images, passed)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def per_worker(speeds: list[Speed]) -> float:
    """Images per second that a further worker adds: with as many as were measured together, unless they had to share
    cores."""
    fitting = [speed for speed in speeds if 1 <= speed.workers <= cores()]
    return max(fitting or speeds, key=lambda speed: speed.workers).each


def workers_for(rate: float, each: float) -> int:
    """Workers of a rank that feed it `rate` images per second where one gives `each`."""
    return math.ceil(rate / each)


def loader_stops(error: UserError) -> Finding:
    """What the loader said when it stopped while it was measured; training would stop there too."""
    mend = "see the findings about samples and shards"
    return Finding("loader_stops", "error", "runs of the loader", f"stopped: {error}", 1, 1, mend)
