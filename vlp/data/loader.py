"""Shards to batches, in an order that depends on the recipe alone.

The run reads `data.streams` interleaved streams. Stream s of an epoch reads every streams-th shard of that epoch's
permutation, each through a shuffle buffer of its own. A global batch takes equally many samples from each stream;
ranks and workers only share the streams out. So the global batches are the same at any number of ranks and workers,
and a position is, per stream, (epoch, shard, samples taken of it).
"""

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vlp.data.batch import Batch, DataNeeds, join
from vlp.data.sample import collate, make_sample
from vlp.data.shards import BadSample, expand_shards, shuffled_shard
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


class StreamDataset(IterableDataset):
    """The parts of every micro-batch that this worker's streams fill. Made by `make_loader`."""

    def __init__(self, shards, needs, recipe, streams, positions, step):
        self.shards: list[str] = shards
        self.needs: DataNeeds = needs
        self.recipe: Recipe = recipe
        self.streams: list[int] = streams
        self.positions: dict[int, Position] = positions
        self.step: int = step

    def __iter__(self) -> Iterator[Loaded | UserError]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        streams = self.streams if worker is None else self.streams[worker.id :: worker.num_workers]
        try:
            yield from self._parts(streams)
        except UserError as error:
            yield error

    def _parts(self, streams: list[int]) -> Iterator[Loaded]:
        train, total = self.recipe.train, self.recipe.data.streams
        each = train.batch_size // (train.accumulation * total)
        positions = {s: self.positions.get(s, START) for s in streams}
        readers = {s: self._read(s, positions[s]) for s in streams}
        step = self.step
        while True:
            for micro in range(train.accumulation):
                samples, index, skipped = [], [], Counter()
                for s in streams:
                    for j in range(each):
                        number = (micro * each + j) * total + s
                        while True:
                            raw, positions[s] = next(readers[s])
                            try:
                                rng = np.random.default_rng(
                                    (train.seed, positions[s][0], zlib.crc32(raw["__key__"].encode()))
                                )
                                samples.append(make_sample(raw, self.needs, self.recipe, step + number, rng))
                            except BadSample as reason:
                                skipped[str(reason)] += 1
                                self._give_up_if_all_bad(s, positions[s], skipped)
                                continue
                            break
                        index.append(number)
                        skipped.update(f"no_{task}" for task in samples[-1].missing)
                yield Loaded(collate(samples, index, self.needs, self.recipe), dict(positions), skipped)
            step += 1

    def _read(self, stream: int, position: Position):
        epoch, first, taken = position
        seed = self.recipe.train.seed
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(len(self.shards))[
                stream :: self.recipe.data.streams
            ]
            for place in range(first, len(order)):
                shard = self.shards[order[place]]
                samples = shuffled_shard(shard, self.recipe.data.shuffle, (seed, epoch, int(order[place])))
                for count, raw in enumerate(samples, start=1):
                    if count > taken:
                        yield raw, (epoch, place, count)
                taken = 0
            epoch, first = epoch + 1, 0
            if epoch > position[0] + 1 and position == START and self._empty(stream):
                raise UserError(f"data.train: the shards of stream {stream} hold no sample; check data.train")

    def _empty(self, stream: int) -> bool:
        return all(
            next(shuffled_shard(shard, 1, (0,)), None) is None
            for shard in self.shards[stream :: self.recipe.data.streams]
        )

    def _give_up_if_all_bad(self, stream: int, position: Position, skipped: Counter[str]) -> None:
        if position[0] > self.positions.get(stream, START)[0] + 1 and sum(skipped.values()) > 1000:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common(3))
            raise UserError(f"data.train: no usable sample in a whole epoch of stream {stream}; reasons: {reasons}")


def make_loader(
    recipe: Recipe, needs: DataNeeds, rank: int, ranks: int, positions: dict[int, Position], step: int
) -> Iterator[Loaded]:
    """Endless micro-batches of this rank, `train.accumulation` of them a step, beginning with step `step`.

    Args:
        positions: where each stream of this rank goes on; streams that it lacks begin at the start.

    Raises:
        UserError: fewer shards than streams, a shard that cannot be read, or no usable sample.
    """
    shards = expand_shards(recipe.data.train, recipe.data.cache)
    total = recipe.data.streams
    if len(shards) < total:
        raise UserError(
            f"data.train: {len(shards)} shards for data.streams={total} readers; "
            f"set data.streams={len(shards)} or fewer, or write more, smaller shards"
        )
    streams = list(range(rank, total, ranks))
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
                raise part
            loaded.append(part)
        positions = {s: position for part in loaded for s, position in part.positions.items()}
        skipped = sum((part.skipped for part in loaded), Counter())
        yield Loaded(join([part.batch for part in loaded]), positions, skipped)
