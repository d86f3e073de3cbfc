"""Caption tables of any size as one SQLite file on disk, which every worker opens read-only.

The captions lie in the order of their files, and shards usually hold images in that order, so look-ups read on; only
the index over the keys' hashes is sorted.
"""

import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlp.annotation.caption_tables import Row, read_table
from vlp.errors import UserError
from vlp.progress import with_progress

FORMAT = 1
"""Raise when what an index holds changes, so that old ones are made anew."""
MEGABYTE = 1_000_000
Captions = dict[str, list[str]]
"""Captions by kind: raw, short, long."""


@dataclass(frozen=True)
class CaptionSource:
    """Caption files and what is read from them; the same files unchanged, read the same way, are the same index."""

    files: tuple[Path, ...]
    keys: tuple[str, ...]
    """Columns that may hold the key; a row's is the first that is not empty."""
    columns: Mapping[str, tuple[str, ...]]
    """Columns of each kind of caption."""

    @property
    def identity(self) -> dict[str, Any]:
        stats = [(path, path.stat()) for path in self.files]
        files = [f"{path.name}, {stat.st_size} bytes, time {stat.st_mtime_ns}" for path, stat in stats]
        return {"captions": files, "keys": list(self.keys), "columns": {k: list(v) for k, v in self.columns.items()}}

    def index_path(self, folder: Path) -> Path:
        """Where its index lies in a folder of indexes."""
        text = json.dumps([FORMAT, self.identity], sort_keys=True)
        return folder.absolute() / f"captions-{hashlib.sha256(text.encode()).hexdigest()[:12]}.sqlite"


def build_index(source: CaptionSource, path: Path) -> None:
    """Read all caption files into a new index at `path`, written beside it and renamed.

    Rows with the same key are kept all; `open_index` merges them. Rows that cannot be used are counted by reason.

    Raises:
        UserError: for a file that cannot be read to its end, tables without one usable row, or a disk that is full.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(partial, isolation_level=None)) as database:
                _fill(database, source)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"the index of the captions, {path}, cannot be written ({error}); give a folder with room by --index"
        ) from None


def index_facts(path: Path) -> dict[str, Any]:
    """What an index holds: `rows`, `keys`, `most_rows` of one key, `bad` rows by reason, `examples` of keys."""
    try:
        with closing(_connect(path)) as database:
            return json.loads(database.execute("SELECT facts FROM facts").fetchone()[0])
    except sqlite3.Error as error:
        raise UserError(f"{path} is no index of captions ({error}); delete it, and it is made anew") from None


def open_index(path: Path) -> Callable[[str], Captions]:
    """A function from a key to its captions by kind, those of all its rows in order; none for an unknown key."""
    database = _connect(path)

    def look_up(key: str) -> Captions:
        rows = database.execute("SELECT texts FROM captions WHERE hash = ? AND key = ?", (_hash(key), key))
        found: Captions = {}
        for (texts,) in rows.fetchall():
            for kind, captions in json.loads(texts).items():
                found.setdefault(kind, []).extend(captions)
        return found

    return look_up


def as_key(value: Any) -> str | None:
    """A cell or a field of JSON as a key: text without white space around it, whole numbers as text; else None."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return None
    return value.strip().encode("utf-8", errors="replace").decode() or None  # SQLite takes no lone surrogates


def as_captions(value: Any, bad: Counter[str]) -> list[str]:
    """The captions in a cell: a text, a list of texts, or such a list as JSON. What is neither is counted in `bad`."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json_list(value)
    captions = []
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            captions.append(text.strip())
        elif text is not None and text == text:  # NaN is pandas' empty cell
            bad["caption_is_no_text"] += 1
    return [caption for caption in captions if caption]


# ---- details ----------------------------------------------------------------------------------------------------


def _connect(path: Path) -> sqlite3.Connection:
    """Read-only and without locks, so that it also works on network file systems and read-only ones."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)


def _hash(key: str) -> int:
    """64 bits, as SQLite's integers: their index is several times smaller than one over URLs."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)


def _json_list(text: str) -> list[str]:
    """The texts of a list that is written as JSON, or the text itself: a caption that only begins with a bracket."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return [text]
    return values if all(isinstance(value, str) for value in values) else [text]


def _fill(database: sqlite3.Connection, source: CaptionSource) -> None:
    database.execute("PRAGMA journal_mode = OFF")  # a build that is cut off is thrown away as a whole
    database.execute("PRAGMA synchronous = OFF")
    database.execute("PRAGMA page_size = 16384")  # several rows fit a page, little of it stays empty
    database.execute("PRAGMA cache_size = -65536")  # KiB; also what sorting the hashes holds in memory
    database.execute("CREATE TABLE captions (hash INTEGER, key TEXT, texts TEXT)")
    bad: Counter[str] = Counter()
    database.execute("BEGIN")
    database.executemany("INSERT INTO captions VALUES (?, ?, ?)", _entries(source, bad))
    database.execute("CREATE INDEX captions_by_hash ON captions (hash)")
    counts = "SELECT COUNT(*) AS n FROM captions GROUP BY hash"
    rows, keys, most = database.execute(f"SELECT SUM(n), COUNT(*), MAX(n) FROM ({counts})").fetchone()
    if not keys:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in bad.most_common()) or "they are empty"
        raise UserError(f"--captions: no row of the files has both a key and a caption: {reasons}; look at the columns")
    examples = [key for (key,) in database.execute("SELECT key FROM captions LIMIT 5")]
    facts = {"rows": rows, "keys": keys, "most_rows": most, "bad": dict(bad.most_common()), "examples": examples}
    database.execute("CREATE TABLE facts (facts TEXT)")
    database.execute("INSERT INTO facts VALUES (?)", (json.dumps(facts),))
    database.execute("COMMIT")


def _entries(source: CaptionSource, bad: Counter[str]) -> Iterator[tuple[int, str, str]]:
    """What is stored for each usable row of all files."""
    total = sum(path.stat().st_size for path in source.files) // MEGABYTE
    for chunk, _ in with_progress(_chunks(source, bad), total, "index of the captions", "MB", lambda chunk: chunk[1]):
        for row in chunk:
            key = next(filter(None, map(as_key, row[: len(source.keys)])), None)
            cells = iter(row[len(source.keys) :])
            captions = {}
            for kind, columns in source.columns.items():
                texts = [text for _ in columns for text in as_captions(next(cells), bad)]
                if texts:
                    captions[kind] = texts
            if key is None:
                bad["no_key"] += 1
            elif not captions:
                bad["no_caption"] += 1
            else:
                yield _hash(key), key, json.dumps(captions)


def _chunks(source: CaptionSource, bad: Counter[str]) -> Iterator[tuple[list[Row], int]]:
    """The rows of all files, with the megabytes that each chunk brings the work forward."""
    columns = [*source.keys, *(column for names in source.columns.values() for column in names)]
    before = shown = 0
    for path in source.files:
        for chunk, position in read_table(path, columns, bad):
            reached = (before + position) // MEGABYTE
            yield chunk, reached - shown
            shown = reached
        before += path.stat().st_size
