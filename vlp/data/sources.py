"""Which shards there are, and in which order an epoch reads them."""

import glob
from pathlib import Path
from typing import TYPE_CHECKING

import braceexpand
import fsspec
import numpy as np

from vlp.data.emoji_shards import demo_shards
from vlp.errors import UserError

if TYPE_CHECKING:
    from vlp.recipe import Recipe

DEMO_PARTS = ("demo:train", "demo:validation")


def expand_sources(patterns: str | list[str], cache: str | None = None) -> list[list[str]]:
    """The shards of every source. A list of patterns, and `::` within one, separate sources; a source is a glob, a
    brace pattern, both, a URL that fsspec or WebDataset's `pipe:` opens, or `demo:train` / `demo:validation`, which
    makes the demo set in `cache` when it is not there yet.

    Raises:
        UserError: for a pattern that matches nothing.
    """
    if not patterns:
        raise UserError("data: no shards are named; give a tar, a glob, or a brace pattern such as /data/{00..99}.tar")
    sources = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        parts = [pattern] if pattern.startswith("pipe:") else pattern.split("::")
        sources += [_expand(part, cache) for part in parts]
    return sources


def expand_shards(patterns: str | list[str], cache: str | None = None) -> list[str]:
    """The shards of all sources, as in `expand_sources`."""
    return [shard for source in expand_sources(patterns, cache) for shard in source]


def _expand(part: str, cache: str | None) -> list[str]:
    if part.startswith("demo:"):
        if part not in DEMO_PARTS:
            raise UserError(f"data: '{part}' is no part of the demo set; allowed are {', '.join(DEMO_PARTS)}")
        part = str(demo_shards(cache) / f"{part.removeprefix('demo:')}-*.tar")
    shards: list[str] = []
    for name in _expand_braces(part):
        if not (found := _match(name)):
            raise UserError(
                f"data: '{part}' matches no shard ({name} does not exist); give a tar, a glob, or a brace "
                "pattern such as /data/{00000..00099}.tar, quoted from the shell"
            )
        shards += found
    return shards


def _expand_braces(pattern: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern))
    except braceexpand.UnbalancedBracesError:
        raise UserError(f"data: '{pattern}' has a brace without its partner; write {{00000..00099}}") from None


def _match(name: str) -> list[str]:
    """The shards of one name: a remote one is taken at its word unless it is a glob."""
    if not is_remote(name):
        return sorted(glob.glob(str(Path(name).expanduser())))
    if name.startswith("pipe:") or not glob.has_magic(name):
        return [name]
    try:
        files, path = fsspec.core.url_to_fs(name)
        return sorted(map(files.unstrip_protocol, files.glob(path)))
    except Exception as error:  # each file system has its own kinds
        raise UserError(f"data: '{name}' cannot be listed ({error}); name the shards with braces instead") from None


def is_remote(name: str) -> bool:
    return name.startswith("pipe:") or "://" in name


class ShardMixture:
    """The training shards of all sources, and how often each source is read.

    An epoch reads each source `weight` times: 1 is every shard once; 2 twice; of a source of weight 0.5 every shard
    is read in one of two epochs. So an epoch has a definite length, and no shard is read again before all others of
    its source were.
    """

    def __init__(self, sources: list[list[str]], weights: list[float], seed: int):
        self.shards = [shard for source in sources for shard in source]
        self.sizes, self.weights, self.seed = list(map(len, sources)), weights, seed

    def __len__(self) -> int:
        """Shards that an epoch reads."""
        return sum(self._takes())

    def order(self, epoch: int) -> list[tuple[int, int]]:
        """The epoch's shards as (place in `shards`, how often it was read before), shuffled."""
        taken, first = [], 0
        for source, (size, take) in enumerate(zip(self.sizes, self._takes(), strict=True)):
            begin, end = epoch * take, (epoch + 1) * take
            for number in range(begin // size, -(-end // size)):
                shards = first + np.random.default_rng((self.seed, number, source)).permutation(size)
                part = shards[max(0, begin - number * size) : end - number * size].tolist()
                taken += [(shard, number) for shard in part]
            first += size
        return [taken[i] for i in np.random.default_rng((self.seed, epoch)).permutation(len(taken))]

    def _takes(self) -> list[int]:
        return [max(1, round(size * weight)) for size, weight in zip(self.sizes, self.weights, strict=True)]


def training_mixture(recipe: "Recipe") -> ShardMixture:
    """The shards of `data.train`, mixed by `data.weights`.

    Raises:
        UserError: no shards, other than one weight a source, or fewer shards than streams.
    """
    data = recipe.data
    sources = expand_sources(data.train, data.cache)
    weights = data.weights or [1.0] * len(sources)
    if len(weights) != len(sources):
        raise UserError(f"data.weights: {len(weights)} weights for {len(sources)} sources of data.train; give one each")
    mixture = ShardMixture(sources, weights, recipe.train.seed)
    if len(mixture) < data.streams:
        raise UserError(
            f"data.train: {len(mixture)} shards for data.streams={data.streams} readers; set data.streams="
            f"{len(mixture)} or fewer, or write more, smaller shards (img2dataset: --number_sample_per_shard)"
        )
    return mixture


def training_shards(recipe: "Recipe") -> list[str]:
    """The shards of `data.train`, each once. Raises as `training_mixture` does."""
    return training_mixture(recipe).shards
