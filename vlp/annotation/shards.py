"""Shards to annotated shards: every input tar becomes an output tar of the same name, restartable shard by shard.

What is added to the samples is an `Annotate` function's business; where it runs, on this machine or on a Ray cluster,
is `annotate_shards`'. Nothing of a sample is lost: every file of it is written again, only its JSON changes.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import webdataset as wds

from vlp.annotation.engine import Engine, map_shards
from vlp.data.captions import read_captions
from vlp.data.shards import BadSample, check_name, image_bytes, read_annotations, read_json, read_shard
from vlp.data.sources import is_remote
from vlp.errors import UserError
from vlp.files import write_text
from vlp.progress import with_progress
from vlp.settings import FieldMap


@dataclass
class Item:
    """A sample to be annotated: change `annotations` in place."""

    key: str
    files: dict[str, bytes]
    """All files of the sample by suffix."""
    annotations: dict[str, Any] = field(default_factory=dict)
    """The sample's JSON; empty where it has none."""
    drop: bool = False
    """The sample is left out of what is written."""
    broken: bool = False
    """Its JSON cannot be read: it is not annotated."""

    @property
    def image(self) -> bytes:
        """The encoded picture. Raises `BadSample`."""
        return image_bytes(self.files)

    def captions(self, fields: FieldMap) -> dict[str, list[str]]:
        """The captions of each kind by the field map. The caption file is `txt` and, by default, `raw`."""
        text = {"json": json.dumps(self.annotations).encode()} | {k: v for k, v in self.files.items() if k == "txt"}
        return read_captions(read_annotations(text), fields)


Annotate = Callable[[list[Item]], Counter[str]]
"""Annotates a batch in place, and counts what it did and what it could not do, by reason."""


@dataclass
class Done:
    """A shard that was written, with its counts, or the reason why it was not."""

    shard: str
    counts: Counter[str]
    error: str | None = None


def annotate_shards(
    shards: list[str],
    out: Path,
    make: Callable[[], Annotate],
    settings: dict[str, Any],
    batch_size: int = 64,
    engine: Engine = "local",
    actors: int = 1,
    gpus: float = 0,
) -> Counter[str]:
    """Annotate every shard that is not yet in `out`, and return the counts of all, earlier ones too.

    Each shard is written beside its place and renamed, so whatever lies in `out` is whole.

    Args:
        make: called once in every process that annotates, to load models; picklable for Ray.
        settings: what decides the result; stored in `out/annotation.json`.
        batch_size: samples that `Annotate` gets at once.
        actors, gpus: processes of the Ray engine, and GPUs of each.

    Raises:
        UserError: two shards with one name, an `out` that other settings filled, or shards that could not be read,
            after all others were written.
    """
    names = [Path(shard).name for shard in shards]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"{len(twice)} shard names occur twice, as {twice[0]}; annotate each source into an --out of its own"
        )
    claim(out, settings, shards)
    todo = [shard for shard in shards if not _stats_path(out, shard).exists()]
    if engine == "local" and todo:
        make = cache(make)
        make()  # a model that cannot be loaded stops here, before any shard
    worker = partial(_shard_worker, make, out.absolute(), batch_size)
    results = (done for _, done in map_shards(worker, todo, engine, actors, gpus))
    failed = [done for done in with_progress(results, len(todo), str(out), "shards") if done.error]
    written = [shard for shard in shards if _stats_path(out, shard).exists()]
    counts = sum((Counter(json.loads(_stats_path(out, shard).read_text())) for shard in written), Counter())
    write_text(out / "summary.json", json.dumps({"shards": len(written)} | dict(sorted(counts.items())), indent=2))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(shards)} shards failed, first {failed[0].error}; all others are in "
            f"{out}, and the same command again tries only these"
        )
    return counts


def claim(out: Path, settings: dict[str, Any], shards: list[str]) -> None:
    """Make the folder for these settings.

    Raises:
        UserError: when it holds shards that were made with others, or some of the `shards` that are to be read.
    """
    if any(not is_remote(shard) and Path(shard).resolve().parent == out.resolve() for shard in shards):
        raise UserError(f"--out {out} holds the shards that are read; give another folder")
    path = out / "annotation.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        stored = json.loads(path.read_text()) if path.exists() else None
        now = json.loads(json.dumps(settings))
        if stored is None:
            write_text(path, json.dumps(now, indent=2))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); give another folder") from None
    if stored not in (None, now):
        key = next(key for key in stored | now if stored.get(key) != now.get(key))
        raise UserError(
            f"--out {out} holds shards made with {key}={stored.get(key)}, not {now.get(key)}; give another folder"
        )


def annotate_shard(shard: str, out: Path, annotate: Annotate, batch_size: int) -> Done:
    """Write the annotated shard and its counts to `out`."""
    counts: Counter[str] = Counter()
    partial = out / f"{Path(shard).name}.partial-{os.getpid()}"
    try:
        with wds.TarWriter(str(partial), encoder=False, mtime=0) as tar:
            samples = _items(shard, counts)
            while batch := list(islice(samples, batch_size)):
                counts.update(annotate([item for item in batch if not item.broken]))
                for item in batch:
                    if item.drop:
                        counts["dropped"] += 1
                        continue
                    if not item.broken:
                        item.files["json"] = json.dumps(item.annotations).encode()
                    tar.write({"__key__": item.key} | item.files)
                counts["samples"] += len(batch)
    except UserError as error:
        partial.unlink(missing_ok=True)
        return Done(shard, counts, str(error))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, out / Path(shard).name)
    write_text(_stats_path(out, shard), json.dumps(counts))
    return Done(shard, counts)


def _items(shard: str, counts: Counter[str]) -> Iterator[Item]:
    """The samples of a shard; one whose JSON is broken stays as it is, one whose name leaves its folder is left out."""
    for raw in read_shard(shard):
        item = Item(raw["__key__"], {suffix: data for suffix, data in raw.items() if not suffix.startswith("__")})
        try:
            check_name(item.key)
            item.annotations = read_json(item.files)
        except BadSample as reason:
            counts[str(reason)] += 1
            item.broken = True
            item.drop = str(reason) == "unsafe_name"
        yield item


def _stats_path(out: Path, shard: str) -> Path:
    return out / f"{Path(shard).name.removesuffix('.tar')}_stats.json"


def _shard_worker(make: Callable[[], Annotate], out: Path, batch_size: int) -> Callable[[str], Done]:
    """Loads the models at the first shard, once: from Ray's actors a `UserError` is to cross as a line."""

    @cache
    def load() -> Annotate | UserError:
        try:
            return make()
        except UserError as error:
            return error

    def annotate(shard: str) -> Done:
        loaded = load()
        if isinstance(loaded, UserError):
            return Done(shard, Counter(), str(loaded))
        return annotate_shard(shard, out, loaded, batch_size)

    return annotate
