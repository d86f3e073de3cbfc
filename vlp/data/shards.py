"""From shard patterns to raw samples: which tars there are, and what is in one."""

import glob
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import braceexpand
import webdataset as wds

from vlp.data.emoji_shards import demo_shards
from vlp.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
DEMO_PARTS = ("demo:train", "demo:validation")


class BadSample(Exception):
    """A sample that cannot be used; its message is the reason under which it is counted."""


def top_reasons(skipped: Counter[str]) -> str:
    """Why most samples were skipped, as in `no_image (12), no_caption (3)`."""
    return ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common(3))


def expand_shards(patterns: str | list[str], cache: str | None = None) -> list[str]:
    """Every shard that `patterns` name: brace patterns, globs, `::` lists, URLs that WebDataset opens, or
    `demo:train` / `demo:validation`, which makes the demo set in `cache` when it is not there yet.

    Raises:
        UserError: for a local pattern that matches no file.
    """
    shards: list[str] = []
    if not patterns:
        raise UserError("data: no shards are named; give a tar, a glob, or a brace pattern such as /data/{00..99}.tar")
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for part in pattern.split("::"):
            if part.startswith("demo:"):
                if part not in DEMO_PARTS:
                    raise UserError(f"data: '{part}' is no part of the demo set; allowed are {', '.join(DEMO_PARTS)}")
                part = str(demo_shards(cache) / f"{part.removeprefix('demo:')}-*.tar")
            for name in _expand_braces(part):
                if is_remote(name):
                    shards.append(name)
                    continue
                found = sorted(glob.glob(str(Path(name).expanduser())))
                if not found:
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


def is_remote(name: str) -> bool:
    return name.startswith("pipe:") or "://" in name


def read_shard(shard: str) -> Iterator[dict[str, Any]]:
    """The samples of one shard in order, as WebDataset groups them: `__key__` and one bytes entry per suffix.

    Raises:
        UserError: when the shard cannot be opened or ends before its end.
    """
    try:
        yield from wds.tariterators.tarfile_samples([{"url": shard}])
        if shard.endswith(".tar") and not is_remote(shard) and not _ends_as_a_tar(shard):
            raise EOFError("it is cut short")
    except Exception as error:
        reason = getattr(error, "strerror", None) or (error.args[0] if error.args else type(error).__name__)
        raise UserError(
            f"{shard}: not a readable tar shard ({reason}); copy it again, or take it out of the data pattern"
        ) from None


def _ends_as_a_tar(path: str) -> bool:
    """Whether the file ends in a zero block. Python's tarfile reads a cut within a header as a normal end."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 512))
        return not any(file.read())


def shuffled_shard(shard: str, buffer: int, seed: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """`read_shard` through a shuffle buffer that is drained at the shard's end: the order depends on `seed` alone."""
    rng = random.Random(repr(seed))
    return wds.filters.shuffle(buffer, initial=buffer, rng=rng)(read_shard(shard))


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
