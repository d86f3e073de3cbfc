"""Shards to batches, in an order that depends on the recipe alone.

The run reads `data.streams` interleaved streams. Stream s of an epoch reads every streams-th shard of that epoch's
order, each through a shuffle buffer of its own. A global batch takes equally many samples from each stream;
ranks and workers only share the streams out. So the global batches are the same at any number of ranks and workers,
and a position is, per stream, (epoch, shard, samples taken of it).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vlp.data.batch import Batch, DataNeeds, join
from vlp.data.health import StreamHealth
from vlp.data.sample import Sample, collate, make_sample, sample_rng
from vlp.data.shards import BadSample, shuffled_shard, top_reasons
from vlp.data.sources import ShardMixture, training_mixture
from vlp.errors import UserError
from vlp.recipe import Recipe

Position = tuple[int, int, int]
"""Epoch, the shard's place in the stream's order of that epoch, samples already taken of it."""

START: Position = (0, 0, 0)


@dataclass
class Loaded:
    """One micro-batch of this rank, where its streams stand after it, and what was skipped to fill it."""

    batch: Batch
    positions: dict[int, Position]
    skipped: Counter[str]


@dataclass
class Drawn:
    """A stream's next usable sample, its number within the global batch, and as in `Loaded`."""

    sample: Sample
    number: int
    position: Position
    skipped: Counter[str]


class StreamDataset(IterableDataset):
    """The parts of every micro-batch that this worker's streams fill. Made by `make_loader`."""

    def __init__(
        self,
        shards: ShardMixture,
        needs: Callable[[int], DataNeeds],
        recipe: Recipe,
        streams: list[int],
        positions: dict[int, Position],
        step: int,
    ):
        self.shards, self.needs, self.recipe = shards, needs, recipe
        self.streams, self.positions, self.step = streams, positions, step
        self.each = recipe.train.batch_size // (recipe.train.accumulation * recipe.data.streams)
        """Samples of each stream in a micro-batch."""

    def __iter__(self) -> Iterator[Loaded | UserError]:
        """A `UserError` is the last item: raised in a worker, it would arrive wrapped in that one's traceback."""
        worker = get_worker_info()
        streams = self.streams if worker is None else self.streams[worker.id :: worker.num_workers]
        try:
            yield from self._parts(streams)
        except UserError as error:
            yield error

    def _parts(self, streams: list[int]) -> Iterator[Loaded]:
        readers = {stream: self._samples(stream) for stream in streams}
        positions: dict[int, Position] = {}
        for micro_batch in count():
            samples, numbers, skipped = [], [], Counter()
            for stream, reader in readers.items():
                for drawn in islice(reader, self.each):
                    samples.append(drawn.sample)
                    numbers.append(drawn.number)
                    positions[stream] = drawn.position
                    skipped.update(drawn.skipped)
            needs = self.needs(self.step + micro_batch // self.recipe.train.accumulation)
            yield Loaded(collate(samples, numbers, needs, self.recipe), dict(positions), skipped)

    def _samples(self, stream: int) -> Iterator[Drawn]:
        """Endless; an epoch that is read from its begin to its end without a usable sample stops the run."""
        train, streams = self.recipe.train, self.recipe.data.streams
        start, drawn, health = self.positions.get(stream, START), 0, StreamHealth(self.recipe.data.bad_share)
        while True:
            epoch, drawn_before = start[0], drawn
            for raw, position, turn in self._epoch(stream, start, health):
                step, place = divmod(drawn, self.each * train.accumulation)
                number = place * streams + stream
                rng = sample_rng(train.seed, turn, raw["__key__"])
                try:
                    needs = self.needs(self.step + step)
                    sample = make_sample(raw, needs, self.recipe, self.step + step + number, rng)
                except BadSample as reason:
                    health.count(str(reason))
                    continue
                health.count(None)
                skipped = health.take_skipped() + Counter(f"no_{task}" for task in sample.missing)
                yield Drawn(sample, number, position, skipped)
                drawn += 1
            if drawn == drawn_before and start == (epoch, 0, 0):
                first, *more = (self.shards.shards[shard] for shard, _ in self._order(stream, epoch))
                raise UserError(
                    f"data.train: no usable sample in {first}{f' and {len(more)} more shards' if more else ''}: "
                    f"{top_reasons(health.skipped) or 'they are empty'}; take them out, or name in data.fields what "
                    "they hold"
                )
            start = (epoch + 1, 0, 0)

    def _epoch(
        self, stream: int, position: Position, health: StreamHealth
    ) -> Iterator[tuple[dict[str, Any], Position, int]]:
        """What is left of a stream's epoch: each raw sample, the position after it, how often it was read before."""
        epoch, first, taken = position
        seed, buffer = self.recipe.train.seed, self.recipe.data.shuffle
        order = self._order(stream, epoch)
        health.begin_epoch()
        for place, (shard, turn) in enumerate(order):
            if place < first:
                continue
            failures: list[str] = []
            already = taken if place == first else 0
            samples = shuffled_shard(self.shards.shards[shard], buffer, (seed, turn, shard), failures.append)
            for number, raw in enumerate(islice(samples, already, None), start=already + 1):
                yield raw, (epoch, place, number), turn
            for reason in failures:
                health.fail_shard(reason, len(order))

    def _order(self, stream: int, epoch: int) -> list[tuple[int, int]]:
        """Which shards the stream reads in this epoch, and how often each was read before."""
        return self.shards.order(epoch)[stream :: self.recipe.data.streams]


def make_loader(
    recipe: Recipe,
    needs: Callable[[int], DataNeeds],
    rank: int,
    ranks: int,
    positions: dict[int, Position],
    step: int,
) -> Iterator[Loaded]:
    """Endless micro-batches of this rank, `train.accumulation` of them a step, beginning with step `step`.

    Args:
        needs: what the samples of a step are read for.
        positions: where each stream of this rank goes on; streams that it lacks begin at the start.

    Raises:
        UserError: fewer shards than streams, no usable sample, or more unusable ones than `data.bad_share`.
    """
    shards = training_mixture(recipe)
    streams = list(range(rank, recipe.data.streams, ranks))
    workers = max((w for w in range(1, recipe.data.workers + 1) if len(streams) % w == 0), default=0)
    dataset = StreamDataset(shards, needs, recipe, streams, positions, step)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
    )
    return _join_parts(iter(loader), max(1, workers))


def _join_parts(parts: Iterator[Loaded | UserError], workers: int) -> Iterator[Loaded]:
    while True:
        loaded = []
        for _ in range(workers):
            part = next(parts)
            if isinstance(part, UserError):
                del parts  # ends the workers now: the traceback would keep them
                raise part
            loaded.append(part)
        positions = {s: position for part in loaded for s, position in part.positions.items()}
        skipped = sum((part.skipped for part in loaded), Counter())
        batch = join([part.batch for part in loaded])
        yield Loaded(batch.pin_memory() if torch.cuda.is_available() else batch, positions, skipped)
