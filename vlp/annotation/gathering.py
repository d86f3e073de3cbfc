"""The statistics of shards or caption files: counted in several processes, added up."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

from vlp.annotation.caption_files import MEGABYTE, Piece, check_columns, read_pieces
from vlp.annotation.repeats import count_repeats
from vlp.annotation.statistics import BATCH, CountSettings, Statistics, count_captions, count_shard
from vlp.data.captions import clean
from vlp.processes import processes
from vlp.progress import with_progress

FILE_CAPTIONS = "file"
"""The one kind of captions in a caption file."""


@dataclass(frozen=True)
class Repeats:
    """How many keys of samples, and how many captions of the documents, occurred before."""

    keys: int
    captions: int


def gather_shards(shards: list[str], settings: CountSettings, workers: int) -> tuple[Statistics, Repeats]:
    """The statistics of shards, with progress on stderr."""
    with processes(min(workers, len(shards))) as mapper:
        counted = mapper(partial(count_shard, settings=settings), shards)
        return _add_up(part for _, part in with_progress(counted, len(shards), "statistics", "shards"))


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
