"""Caption files row by row: CSV and TSV, JSON lines, Parquet; the text formats also compressed with gzip or bzip2.

Python's own CSV reader, not pyarrow's, because it goes on behind a broken row, and one stray quote among millions of
captions is common.
"""

import bz2
import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from vlp.errors import UserError

Row = tuple[Any, ...]
FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
COMPRESSION = (".gz", ".bz2")
LONGEST_FIELD = 1 << 20
"""Characters of a CSV field. More is no caption: a quote without its partner swallows what follows."""
CHUNK = 1000
"""Rows that are held at once."""
READ_ERRORS = (OSError, EOFError, ValueError, zlib.error)


def table_columns(path: Path) -> list[str]:
    """The names of a caption file's columns; of JSON lines, the keys of the first 100. Raises `UserError`."""
    kind = _format(path)
    try:
        with path.open("rb") as file:
            if kind == ".parquet":
                return _parquet(file).schema_arrow.names
            text = _text(file, path)
            if kind in (".csv", ".tsv"):
                return _csv_header(_csv_reader(text, kind))
            return list(dict.fromkeys(key for row in islice(_json_objects(text, Counter()), 100) for key in row))
    except READ_ERRORS as error:
        raise _unreadable(path, error) from None


def read_table(path: Path, columns: list[str], bad: Counter[str]) -> Iterator[tuple[list[Row], int]]:
    """The rows of a caption file in chunks, each with how many bytes of the file were read by its end.

    Args:
        columns: what a row holds, in this order; None where it has no such column.
        bad: rows that cannot be read are counted here, by reason.

    Raises:
        UserError: when the file cannot be read, or not up to its end.
    """
    kind = _format(path)
    try:
        with path.open("rb") as file:
            if kind == ".parquet":
                yield from _parquet_chunks(file, path.stat().st_size, columns)
                return
            text = _text(file, path)
            if kind in (".csv", ".tsv"):
                rows = _csv_rows(_csv_reader(text, kind), columns, bad)
            else:
                rows = (tuple(row.get(column) for column in columns) for row in _json_objects(text, bad))
            while chunk := list(islice(rows, CHUNK)):
                yield chunk, file.tell()
    except READ_ERRORS as error:
        raise _unreadable(path, error) from None


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    kind = suffixes[-2] if len(suffixes) == 2 and suffixes[-1] in COMPRESSION else "".join(suffixes[-1:])
    if kind not in FORMATS or (kind == ".parquet" and suffixes[-1] in COMPRESSION):
        raise UserError(
            f"{path}: caption files are {', '.join(FORMATS)}, all but Parquet also with .gz or .bz2 behind; "
            "convert or rename the file"
        )
    return kind


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{path}: cannot be read ({reason}); copy, download or convert it again")


def _text(file: BinaryIO, path: Path) -> TextIO:
    """The file as text: a byte order mark is dropped, what is no UTF-8 becomes replacement characters."""
    if path.suffix.lower() == ".gz":
        file = gzip.GzipFile(fileobj=file)
    elif path.suffix.lower() == ".bz2":
        file = bz2.BZ2File(file)
    return TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")


# ---- formats ----------------------------------------------------------------------------------------------------


def _csv_reader(text: TextIO, kind: str) -> Iterator[list[str]]:
    csv.field_size_limit(LONGEST_FIELD)
    return csv.reader(text, delimiter="\t" if kind == ".tsv" else ",")


def _csv_header(rows: Iterator[list[str]]) -> list[str]:
    try:
        return [name.strip() for name in next(rows, [])]
    except csv.Error as error:
        raise ValueError(f"its first line: {error}") from None


def _csv_rows(rows: Iterator[list[str]], columns: list[str], bad: Counter[str]) -> Iterator[Row]:
    header = _csv_header(rows)
    places = [header.index(column) if column in header else None for column in columns]
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:  # the reader goes on with the next line
            bad["unreadable_row"] += 1
            continue
        if len(row) == len(header):
            yield tuple(None if place is None else row[place] for place in places)
        elif row:
            bad["wrong_number_of_columns"] += 1


def _json_objects(text: TextIO, bad: Counter[str]) -> Iterator[dict[str, Any]]:
    for line in text:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            bad["unreadable_json"] += 1
            continue
        if isinstance(value, dict):
            yield value
        else:
            bad["json_is_not_an_object"] += 1


def _parquet(file: BinaryIO) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError("Parquet files want pyarrow: pip install -e '.[annotate]'") from None
    return ParquetFile(file)


def _parquet_chunks(file: BinaryIO, size: int, columns: list[str]) -> Iterator[tuple[list[Row], int]]:
    table = _parquet(file)
    present = [column for column in columns if column in table.schema_arrow.names]
    done = 0
    for batch in table.iter_batches(CHUNK, columns=present):
        values = {column: _values(batch.column(column)) for column in present}
        done += batch.num_rows
        missing = [None] * batch.num_rows
        chunk = list(zip(*(values.get(column, missing) for column in columns), strict=True))
        yield chunk, size * done // table.metadata.num_rows


def _values(column: Any) -> list[Any]:
    """A Parquet column as Python values; text that is no UTF-8 with replacement characters."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast("binary").to_pylist()
        return [value if value is None else value.decode("utf-8", errors="replace") for value in values]
