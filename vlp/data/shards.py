"""What is in a shard: its raw samples, their pictures and their JSON."""

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec
import webdataset as wds
from webdataset.gopen import gopen

from vlp.data.sources import is_remote
from vlp.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
RETRY_SECONDS = (1.0, 4.0)
"""How long to wait before a shard that failed is opened again; after the last one it is given up."""


class BadSample(Exception):
    """A sample that cannot be used; its message is the reason under which it is counted."""


def top_reasons(skipped: Counter[str]) -> str:
    """Why most samples were skipped, as in `no_image (12), no_caption (3)`."""
    return ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common(3))


def read_shard(shard: str) -> Iterator[dict[str, Any]]:
    """The samples of one shard in order, as WebDataset groups them: `__key__` and one bytes entry per suffix.

    A shard that fails is opened again after each of `RETRY_SECONDS` and goes on behind the samples already given.

    Raises:
        UserError: when the shard cannot be opened, or ends before its end.
    """
    given = 0
    for pause in (*RETRY_SECONDS, None):
        try:
            for sample in islice(_read_once(shard), given, None):
                yield sample
                given += 1
            return
        except Exception as error:  # file systems, tarfile and WebDataset have kinds of their own
            if pause is None:
                raise UserError(
                    f"{shard}: not a readable tar shard ({_why(error)}); copy it again, or take it out of the data "
                    "pattern"
                ) from None
            time.sleep(pause)


def _read_once(shard: str) -> Iterator[dict[str, Any]]:
    with _open(shard) as stream:
        files = wds.tariterators.tar_file_iterator(stream)
        yield from wds.tariterators.group_by_keys(file | {"__url__": shard} for file in files)
    if shard.endswith(".tar") and not is_remote(shard) and not _ends_as_a_tar(shard):
        raise EOFError("it is cut short")


def _open(shard: str) -> IO[bytes]:
    if shard.startswith("pipe:"):
        return gopen(shard)
    return fsspec.open(shard).open() if is_remote(shard) else open(shard, "rb")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or (str(error.args[0]) if error.args else type(error).__name__)


def _ends_as_a_tar(path: str) -> bool:
    """Whether the file ends in a zero block. Python's tarfile reads a cut within a header as a normal end."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 512))
        return not any(file.read())


def shuffled_shard(shard: str, buffer: int, seed: tuple[int, ...], failed: Callable[[str], None]) -> Iterator[dict]:
    """`read_shard` through a shuffle buffer that is drained at the shard's end: the order depends on `seed` alone.

    A shard that cannot be read to its end ends where it fails, and the reason goes to `failed`.
    """

    def samples() -> Iterator[dict[str, Any]]:
        try:
            yield from read_shard(shard)
        except UserError as error:
            failed(str(error))

    return wds.filters.shuffle(buffer, initial=buffer, rng=random.Random(repr(seed)))(samples())


def check_name(key: str) -> None:
    """Raises `BadSample` for a key that leaves the folder that it would be written to."""
    if key.startswith("/") or ".." in PurePosixPath(key).parts:
        raise BadSample("unsafe_name")


def image_bytes(raw: dict[str, Any]) -> bytes:
    """The encoded picture of a raw sample. Raises `BadSample`."""
    for suffix in IMAGE_SUFFIXES:
        if suffix in raw:
            return raw[suffix]
    raise BadSample("no_image")


def read_json(raw: dict[str, Any]) -> dict[str, Any]:
    """The sample's JSON object, empty where it has none. Raises `BadSample` for JSON that is none or no object."""
    if "json" not in raw:
        return {}
    try:
        value = json.loads(raw["json"])
    except (ValueError, RecursionError):
        raise BadSample("unreadable_json") from None
    if not isinstance(value, dict):
        raise BadSample("json_is_not_an_object")
    return value


def read_annotations(raw: dict[str, Any]) -> dict[str, Any]:
    """`read_json`, where the caption file, if there is one, is the key `txt` and, by default, `raw`."""
    annotations = read_json(raw)
    if "txt" in raw:
        text = raw["txt"].decode("utf-8", errors="replace")
        annotations.setdefault("txt", text)
        annotations.setdefault("raw", text)
    return annotations
