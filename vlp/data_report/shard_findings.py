"""What is wrong with the shards as files, and with how readers share them out."""

import os
from statistics import median

from safetensors import SafetensorError, safe_open

from vlp.data.sources import ShardMixture, expand_shards, is_remote
from vlp.data.tokens import VOCABULARY
from vlp.data_report.findings import Finding
from vlp.data_report.reading import ReadShards
from vlp.errors import UserError
from vlp.recipe import Recipe

EMPTY_TAR = 10_240
"""Bytes of the largest tar without a file."""
UNEVEN = 4
"""Times the median size, or one such part of it."""
RESHARD = "write more shards with fewer samples each (img2dataset: --number_sample_per_shard)"


def shard_findings(mixture: ShardMixture, read: ReadShards, recipe: Recipe, ranks: int) -> list[Finding]:
    """Too few shards, readers without a stream, empty, broken and uneven shards.

    Args:
        mixture: all training shards.
        read: those that were looked into.
        ranks: processes of the run.
    """
    return [
        *_readers(len(mixture), recipe, ranks),
        *_broken(read, recipe),
        *_sizes(mixture.shards, read),
    ]


def _readers(shards: int, recipe: Recipe, ranks: int) -> list[Finding]:
    streams, workers, found = recipe.data.streams, recipe.data.workers, []
    if shards < streams:
        what = f"for data.streams={streams} readers; training would not start"
        fitting = max((n for n in range(ranks, shards + 1, ranks)), default=0)
        mend = f"data.streams={fitting}, or {RESHARD}" if fitting else f"{RESHARD}: at least one for each rank"
        found.append(Finding("too_few_shards", "error", "shards", what, shards, shards, mend))
    each = streams // ranks
    active = max((n for n in range(1, workers + 1) if each % n == 0), default=0)
    if active < workers:
        what = f"of a rank's data.workers={workers} have nothing to read: it has {each} of data.streams={streams}"
        wanted = ranks * workers
        mend = f"data.streams={-(-streams // wanted) * wanted}"
        if shards < wanted:
            mend = f"data.workers={active}; for more, {RESHARD}: at least {wanted}"
        found.append(Finding("idle_workers", "warning", "workers", what, workers - active, workers, mend))
    return found


def _broken(read: ReadShards, recipe: Recipe) -> list[Finding]:
    if not read.failed:
        return []
    too_many = len(read.failed) > max(1, recipe.data.bad_share * len(read.names))
    shard, reason = next(iter(read.failed.items()))
    return [
        Finding(
            "unreadable_shard",
            "error" if too_many or len(read.failed) == len(read.names) else "warning",
            "shards that were read",
            "cannot be read to their end; the rest of each is skipped",
            len(read.failed),
            len(read.names),
            "copy or make them again, or take them out of data.train",
            shard=shard,
            value=reason,
        )
    ]


def _sizes(shards: list[str], read: ReadShards) -> list[Finding]:
    sizes = {shard: os.path.getsize(shard) for shard in shards if not is_remote(shard) and os.path.isfile(shard)}
    looked = {*read.names, *sizes}
    empty = [shard for shard in shards if shard in read.empty or (shard not in read.names and _is_empty(shard, sizes))]
    found = []
    if empty:
        what, mend = "hold no sample", "take them out of data.train, or make them again"
        found.append(Finding("empty_shard", "warning", "shards", what, len(empty), len(looked), mend, shard=empty[0]))
    filled = {shard: size for shard, size in sizes.items() if shard not in empty}
    usual = median(filled.values()) if filled else 0
    uneven = [shard for shard, size in filled.items() if not usual / UNEVEN <= size <= usual * UNEVEN]
    if uneven:
        first = max(uneven, key=lambda shard: abs(filled[shard] - usual))
        found.append(
            Finding(
                "uneven_shards",
                "warning" if len(uneven) > 0.1 * len(filled) else "note",
                "shards",
                f"are over {UNEVEN} times larger or smaller than the median of {usual / 1e6:,.1f} MB; every reader "
                "takes equally many samples, so those of small shards are shown more often",
                len(uneven),
                len(filled),
                "write them again with equally many samples each",
                shard=first,
                value=f"{filled[first] / 1e6:,.1f} MB",
            )
        )
    return found


def _is_empty(shard: str, sizes: dict[str, int]) -> bool:
    if sizes.get(shard, EMPTY_TAR + 1) > EMPTY_TAR:
        return False
    with open(shard, "rb") as file:
        return not any(file.read())


def file_findings(recipe: Recipe) -> list[Finding]:
    """Other files that the recipe names: validation shards, and statistics for static IDF."""
    found = []
    if recipe.data.validation is not None:
        try:
            expand_shards(recipe.data.validation, recipe.data.cache)
        except UserError as error:
            mend = "name them in data.validation, or data.validation=null"
            found.append(Finding("no_validation", "error", "validation shards", str(error), 1, 1, mend))
    for name, settings in recipe.objectives.items():
        path = getattr(settings, "idf_file", None)
        if path and getattr(settings, "idf", None) == "static" and (wrong := _wrong_statistics(path)):
            mend = "write them with tools/prepare_statistics.py, or idf: running"
            found.append(Finding("idf_file", "error", f"objectives.{name}.idf_file", wrong, 1, 1, mend, value=path))
    return found


def _wrong_statistics(path: str) -> str:
    try:
        with safe_open(path, "pt") as file:
            missing = {"frequency", "documents"} - set(file.keys())
            if missing:
                return f"has no {' and no '.join(sorted(missing))}"
            length = file.get_slice("frequency").get_shape()
    except (OSError, SafetensorError):
        return "cannot be read as safetensors"
    return "" if length == [VOCABULARY] else f"holds frequencies of shape {length}, not of {VOCABULARY} tokens"
