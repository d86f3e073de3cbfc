"""Which samples the check looks at: those that training would draw first, of a few shards."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from vlp.data.sample import sample_rng
from vlp.data.shards import shuffled_shard
from vlp.data.sources import ShardMixture
from vlp.recipe import Recipe

SHARDS = 16
"""Shards that the samples are spread over."""


@dataclass
class Drawn:
    """A raw sample, its shard, and how often training has read that before (0 but for sources of weight above 1)."""

    raw: dict[str, Any]
    shard: str
    turn: int

    @property
    def key(self) -> str:
        return self.raw["__key__"]


@dataclass
class ReadShards:
    """The shards that were read so far, those without a sample, and why others could not be read."""

    names: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def draw(mixture: ShardMixture, recipe: Recipe, samples: int, read: ReadShards) -> Iterator[Drawn]:
    """`samples` raw samples of the first shards of epoch 0, each in the order in which training would draw them.

    Args:
        samples: fewer come where the shards hold fewer. After `SHARDS` shards that gave nothing no other is tried.
        read: is told which shards were read, and what became of them.
    """
    order, seed, left = mixture.order(0), recipe.train.seed, samples
    share = -(-samples // max(1, min(len(order), SHARDS)))
    for number, turn in order:
        if not left or len(read.empty) + len(read.failed) > SHARDS:
            return
        shard, given, failures = mixture.shards[number], 0, []
        read.names.append(shard)
        shuffled = shuffled_shard(shard, recipe.data.shuffle, (seed, turn, number), failures.append)
        for raw in islice(shuffled, min(share, left)):
            yield Drawn(raw, shard, turn)
            given += 1
        left -= given
        if failures:
            read.failed[shard] = failures[0]
        elif not given:
            read.empty.append(shard)


def training_rng(recipe: Recipe, drawn: Drawn) -> np.random.Generator:
    """The generator with which training draws crop, captions and prompts of this sample."""
    return sample_rng(recipe.train.seed, drawn.turn, drawn.key)


def with_data(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other values in its section `data`."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)})
