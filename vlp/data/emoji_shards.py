"""The embedded demo set: emoji scenes as WebDataset shards, made on first use and kept in a cache folder."""

import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import webdataset
from PIL import Image

from vlp.data import emoji_captions, emoji_objects, emoji_questions, emoji_scenes
from vlp.data.emoji_captions import captions, position, region_texts
from vlp.data.emoji_objects import OBJECTS
from vlp.data.emoji_questions import retrieval_questions, vqa_pairs
from vlp.data.emoji_scenes import Scene, center, compose, draw, draw_mask, held_out_pairs
from vlp.errors import UserError
from vlp.processes import leave_with_parent
from vlp.progress import with_progress

LICENSE = "Graphics: Twemoji, Copyright Twitter, Inc and other contributors, CC-BY 4.0"

README = """Emoji scenes: the embedded demo set of vlp, made by vlp/data/emoji_shards.py.

train-*.tar, validation-*.tar   WebDataset shards: KEY.jpg, KEY.txt, KEY.json; validation also KEY.mask.png
classes.json                    the class of mask value i is entry i - 1; mask value 0 is the background
questions.json                  question retrieval on validation scenes: positives and negatives for each question
summary.json                    counts, seed, held-out pairs

Some object-background and object-object pairs never occur in training; every validation scene shows at least one.

The pictures are composed of Twemoji graphics, Copyright Twitter, Inc and other contributors,
licensed under CC-BY 4.0: https://creativecommons.org/licenses/by/4.0/
They were resized, rotated, tinted and placed on coloured backgrounds.
"""


@dataclass(frozen=True)
class DemoSet:
    """What decides every byte of the set, besides the code that makes it."""

    train: int = 20_000
    validation: int = 1_000
    seed: int = 0
    side: int = 128
    shard_size: int = 1_000
    questions: int = 500

    def __post_init__(self) -> None:
        for name, least in {"train": 1, "validation": 2, "side": 32, "shard_size": 1, "questions": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"demo set: {name} is {getattr(self, name)}, it must be at least {least}")

    @property
    def version(self) -> str:
        """A hash of the settings and of the generator's source: a changed generator makes a new set."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode())
        for module in (emoji_objects, emoji_scenes, emoji_captions, emoji_questions, sys.modules[__name__]):
            digest.update(Path(module.__file__).read_bytes())
        return digest.hexdigest()[:12]

    def shards(self) -> list[tuple[str, str, range]]:
        """File name, split and scene numbers of every shard; validation is at least two shards."""
        found = []
        for split, total, size in (
            ("train", self.train, self.shard_size),
            ("validation", self.validation, min(self.shard_size, ceil(self.validation / 2))),
        ):
            for shard, start in enumerate(range(0, total, size)):
                found.append((f"{split}-{shard:06d}.tar", split, range(start, min(start + size, total))))
        return found


def demo_shards(cache: str | None = None, settings: DemoSet | None = None) -> Path:
    """The folder of the demo set, which is made if it does not exist yet.

    It lies in `cache`, else in `$VLP_CACHE`, else in `~/.cache/vlp`.
    """
    settings = settings or DemoSet()
    root = Path(cache or os.environ.get("VLP_CACHE") or "~/.cache/vlp").expanduser()
    folder = root / f"emoji-scenes-{settings.version}"
    if not folder.is_dir():
        write_demo_set(folder, settings)
    return folder


def write_demo_set(folder: Path, settings: DemoSet) -> None:
    """Make the set in `folder`; a process that comes second waits, and finds it made.

    The set is built beside the folder and renamed at the end, so the folder is whole whenever it exists.
    """
    with _only_one(folder):
        if folder.is_dir():
            return
        for stale in folder.parent.glob(f"{folder.name}.partial*"):
            shutil.rmtree(stale)
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        partial.mkdir()
        try:
            _build(partial, settings)
            partial.rename(folder)
        except OSError as error:
            raise _unwritable(folder, error) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees when a process dies."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        path = folder.with_name(f".{folder.name}.lock")
        path.touch()
    except OSError as error:
        raise _unwritable(folder, error) from None
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"demo set: cannot write {folder} ({error.strerror}); set VLP_CACHE to a folder with room")


def _build(folder: Path, settings: DemoSet) -> None:
    """Write every file of the set, the shards in parallel."""
    scenes: dict[str, Scene] = {}
    for written in _write_shards(folder, settings):
        scenes |= {key: scene for key, scene in written.items() if key.startswith("validation")}
    scenes = dict(sorted(scenes.items()))
    backgrounds, pairs = held_out_pairs()
    summary = {
        **asdict(settings),
        "version": settings.version,
        "classes": len(OBJECTS),
        "held_out_backgrounds": backgrounds,
        "held_out_pairs": pairs,
    }
    texts = {
        "README.txt": README,
        "LICENSE.txt": f"{LICENSE}\nhttps://creativecommons.org/licenses/by/4.0/\n",
        "classes.json": json.dumps(list(OBJECTS)),
        "questions.json": json.dumps(retrieval_questions(scenes, settings.questions, settings.seed)),
        "summary.json": json.dumps(summary),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)


def _write_shards(folder: Path, settings: DemoSet) -> Iterator[dict[str, Scene]]:
    """The scenes of each shard as soon as it is written, with progress on the way."""
    shards, context = settings.shards(), multiprocessing.get_context("spawn")
    workers = min(len(os.sched_getaffinity(0)), len(shards))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=leave_with_parent) as pool:
        jobs = [pool.submit(_write_shard, folder, settings, *shard) for shard in shards]
        written = (job.result() for job in as_completed(jobs))
        try:
            yield from with_progress(written, settings.train + settings.validation, "emoji scenes", "scenes", len)
        finally:
            pool.shutdown(cancel_futures=True)


def _write_shard(folder: Path, settings: DemoSet, name: str, split: str, numbers: range) -> dict[str, Scene]:
    """Write one shard; its bytes depend on the settings alone."""
    scenes = {f"{split}_{number:08d}": compose(settings.seed, split, number, settings.side) for number in numbers}
    with open(folder / name, "wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as shard:
        for key, scene in scenes.items():
            rng = random.Random(f"{settings.seed}/{key}/texts")
            shard.write({"__key__": key, **sample(scene, rng, with_mask=split == "validation")})
    return scenes


def sample(scene: Scene, rng: random.Random, with_mask: bool) -> dict[str, bytes]:
    """The files of one sample by extension: the data contract, and what the scene holds."""
    texts = captions(scene, rng)
    regions = [
        {"box": [edge / scene.side for edge in placed.box], "phrase": phrase, "caption": text, "score": 1.0}
        for placed, (phrase, text) in zip(scene.objects, region_texts(scene), strict=True)
    ]
    objects = [
        {"name": placed.name, "size": placed.size, "place": position(center(placed, scene.side))}
        for placed in scene.objects
    ]
    background = {"color": scene.background.color, "texture": scene.background.texture}
    record = {
        **texts,
        "regions": regions,
        "vqa": vqa_pairs(scene, rng),
        "objects": objects,
        "background": background,
        "license": LICENSE,
    }
    files = {
        "jpg": _encoded(draw(scene), "JPEG", quality=92, subsampling=0),
        "txt": texts["raw"].encode(),
        "json": json.dumps(record).encode(),
    }
    if with_mask:
        files["mask.png"] = _encoded(draw_mask(scene, list(OBJECTS)), "PNG")
    return files


def _encoded(image: Image.Image, format: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()
