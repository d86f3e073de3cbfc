"""Files of captions alone, read in pieces: one caption a line of a `.txt`, one or more a row of a table."""

import bz2
import glob
import gzip
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from vlp.annotation.caption_tables import COMPRESSION, FORMATS, READ_ERRORS, read_table, table_columns
from vlp.errors import UserError, nearest

PIECE = 8192
"""Captions of a table that are read at once, at least."""
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Piece:
    """Lines of a text file, or captions of a table, and how many whole megabytes of all files were passed by them."""

    captions: bytes | list[str]
    megabytes: int

    @property
    def texts(self) -> list[str]:
        if isinstance(self.captions, list):
            return self.captions
        text = self.captions.decode("utf-8", errors="replace").removeprefix("\ufeff")
        return text.removesuffix("\n").split("\n")


def caption_files(sources: list[str]) -> list[Path]:
    """The caption files that `sources` name, globs expanded; none when they are shards.

    Raises:
        UserError: when they are some of each, or a name matches no file.
    """
    named = [source for source in sources if _format(Path(source)) in (".txt", *FORMATS)]
    if named and (other := [source for source in sources if source not in named]):
        raise UserError(f"{named[0]} is a caption file, {other[0]} is none; give either caption files or shards")
    return [path for source in named for path in _expand(Path(source).expanduser())]


def check_columns(paths: list[Path], columns: list[str]) -> None:
    """Raise `UserError` for a table that cannot be read or lacks one of the columns."""
    for path in paths:
        present = columns if _format(path) == ".txt" else table_columns(path)
        for column in columns:
            if column not in present:
                raise UserError(
                    f"{path} has no column '{column}'{nearest(column, present)}; name those of the captions with "
                    f"--column; it has {', '.join(present[:20]) or 'none'}"
                )


def read_pieces(paths: list[Path], columns: list[str], unusable: Counter[str]) -> Iterator[Piece]:
    """The captions of all files; rows that cannot be read and values that are no text are counted in `unusable`.

    Raises:
        UserError: when a file cannot be read up to its end.
    """
    before = passed = 0
    for path in paths:
        chunks = _lines(path) if _format(path) == ".txt" else _rows(path, columns, unusable)
        for captions, read in chunks:
            yield Piece(captions, (before + read) // MEGABYTE - passed)
            passed = (before + read) // MEGABYTE
        before += path.stat().st_size


def _format(path: Path) -> str:
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSION else suffix


def _expand(path: Path) -> list[Path]:
    found = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path)))]
    if not found:
        raise UserError(f"{path} matches no file; give caption files, as captions.txt, or shards, as '/data/*.tar'")
    return found


def _lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """About a megabyte of whole lines at a time, and the bytes of the file that were read."""
    openers = {".gz": gzip.open, ".bz2": bz2.open}
    try:
        with path.open("rb") as file, openers.get(path.suffix.lower(), nullcontext)(file) as stream:
            while lines := stream.read(MEGABYTE) + stream.readline():
                yield lines, file.tell()
    except READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be read ({reason}); copy or download it again") from None


def _rows(path: Path, columns: list[str], unusable: Counter[str]) -> Iterator[tuple[list[str], int]]:
    captions, read = [], 0
    for rows, read in read_table(path, columns, unusable):
        captions += _texts(chain.from_iterable(rows), unusable)
        if len(captions) >= PIECE:
            yield captions, read
            captions = []
    yield captions, read


def _texts(values: Iterable[object], unusable: Counter[str]) -> Iterator[str]:
    """The captions of a table's values, which may be lists of them."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from _texts(value, unusable)
        else:
            unusable["no_caption"] += 1
