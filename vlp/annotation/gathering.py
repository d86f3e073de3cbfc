"""The statistics of shards or caption files: counted in several processes, added up."""

import hashlib
import json
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryFile

from vlp.annotation.caption_files import MEGABYTE, Piece, check_columns, read_pieces
from vlp.annotation.engine import Engine, map_shards
from vlp.annotation.repeats import count_repeats
from vlp.annotation.statistics import BATCH, CountSettings, Statistics, count_captions, count_shard
from vlp.data.captions import clean
from vlp.files import write_bytes
from vlp.processes import processes
from vlp.progress import with_progress

FILE_CAPTIONS = "file"
"""The one kind of captions in a caption file."""


@dataclass(frozen=True)
class Repeats:
    """How many keys of samples, and how many captions of the documents, occurred before."""

    keys: int
    captions: int


def gather_shards(
    shards: list[str], settings: CountSettings, out: Path, workers: int, engine: Engine = "local", actors: int = 1
) -> tuple[Statistics, Repeats]:
    """The statistics of shards, with progress on stderr.

    The counts of each shard lie in a folder of `out` until `forget_parts`, so that the same call goes on where it was
    stopped. Of shards that cannot be read nothing is kept, so that another call tries them again.
    """
    parts = _parts(shards, settings, out)
    places = {shard: parts / f"{number:06d}.part" for number, shard in enumerate(shards)}
    todo = [shard for shard in shards if not places[shard].exists()]
    failed: dict[str, Statistics] = {}

    def keep(results: Iterable[tuple[str, bytes | Statistics]]) -> None:
        for shard, result in with_progress(results, len(todo), "statistics", "shards"):
            if isinstance(result, Statistics):
                failed[shard] = result
            else:
                parts.mkdir(parents=True, exist_ok=True)
                write_bytes(places[shard], result)

    if engine == "ray":
        keep(map_shards(partial(_counter, settings), todo, engine, actors))
    elif todo:
        with processes(min(workers, len(todo))) as mapper:
            keep(mapper(partial(_count, settings), todo))
    return _add_up(failed.get(shard) or _unpack(places[shard].read_bytes()) for shard in shards)


def forget_parts(shards: list[str], settings: CountSettings, out: Path) -> None:
    """Remove what `gather_shards` keeps, once its result is written."""
    rmtree(_parts(shards, settings, out), ignore_errors=True)


def _parts(shards: list[str], settings: CountSettings, out: Path) -> Path:
    """A folder for these shards, counted in this way."""
    words = [[each.name, *map(sorted, each.groups)] for each in settings.combinations]
    what = [shards, settings.fields.model_dump(), settings.kind, settings.context_length, words]
    return out / f"parts-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]}"


def _counter(settings: CountSettings) -> Callable[[str], bytes | Statistics]:
    return partial(_count, settings)


def _count(settings: CountSettings, shard: str) -> bytes | Statistics:
    """The counts of a shard, packed, or as they are when it could not be read."""
    counted = count_shard(shard, settings)
    return counted if counted.failed else zlib.compress(pickle.dumps(counted), level=1)


def _unpack(part: bytes) -> Statistics:
    return pickle.loads(zlib.decompress(part))


def gather_files(
    paths: list[Path], columns: list[str], settings: CountSettings, workers: int
) -> tuple[Statistics, Repeats]:
    """The statistics of caption files, with progress on stderr.

    Raises:
        UserError: when a file cannot be read, or is a table without one of the columns.
    """
    unusable: Counter[str] = Counter()
    with processes(workers) as mapper:
        check_columns(paths, columns)
        total = sum(path.stat().st_size for path in paths) // MEGABYTE
        counted = mapper(partial(count_piece, settings=settings), read_pieces(paths, columns, unusable))
        done = with_progress(counted, total, "statistics", "MB", lambda result: result[0].megabytes)
        statistics, repeats = _add_up(part for _, part in done)
    statistics.unusable.update(unusable)
    return statistics, repeats


def count_piece(piece: Piece, settings: CountSettings) -> Statistics:
    """The statistics of the captions of a piece, cleaned as training does it; empty ones are no captions."""
    counted, texts = Statistics(), piece.texts
    captions = [text for text in map(clean, texts) if text]
    if len(captions) < len(texts):
        counted.unusable["empty_caption"] = len(texts) - len(captions)
    for start in range(0, len(captions), BATCH):
        count_captions(captions[start : start + BATCH], FILE_CAPTIONS, settings, counted)
    return counted


def _add_up(parts: Iterable[Statistics]) -> tuple[Statistics, Repeats]:
    total = Statistics()
    with TemporaryFile() as keys, TemporaryFile() as captions:
        for part in parts:
            total.add(part)
            keys.write(part.key_hashes)
            captions.write(part.caption_hashes)
        return total, Repeats(count_repeats(keys), count_repeats(captions))
