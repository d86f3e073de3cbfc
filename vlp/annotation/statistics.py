"""What is counted of captions and samples: tokens, fields, picture sizes, keywords.

Shapes: N captions, M token ids of all of them, V vocabulary.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from vlp.annotation.keywords import Combination, count_combinations
from vlp.annotation.repeats import hash_texts
from vlp.data.captions import read_captions
from vlp.data.shards import BadSample, image_bytes, read_annotations, read_shard
from vlp.data.tokens import END, START, VOCABULARY, encode_batch
from vlp.errors import UserError
from vlp.settings import FieldMap

KINDS = ("raw", "short", "long")
BATCH = 8192
"""Captions that are counted at once."""


@dataclass(frozen=True)
class CountSettings:
    """What is counted. Captions of `kind`, of all kinds when None, are the documents whose frequencies and keywords
    are counted."""

    fields: FieldMap = field(default_factory=FieldMap)
    kind: str | None = None
    context_length: int = 77
    combinations: tuple[Combination, ...] = ()


@dataclass
class Statistics:
    """Counts that add up. Histograms are exact: a value, and how often it occurs."""

    samples: int = 0
    documents: int = 0
    frequency_V: np.ndarray = field(default_factory=lambda: np.zeros(VOCABULARY, dtype=np.int64))
    keywords: Counter[str] = field(default_factory=Counter)
    tokens: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """By kind of caption, its length with start and end token, before it is cut."""
    items: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """By field, how many captions, regions or questions a sample has."""
    images: dict[str, Counter[Any]] = field(default_factory=lambda: defaultdict(Counter))
    """`width`, `height` and `format`."""
    unusable: Counter[str] = field(default_factory=Counter)
    """What could not be read, by reason."""
    failed: list[str] = field(default_factory=list)
    """Why shards could not be read. Nothing of them is counted."""
    key_hashes: bytes = b""
    caption_hashes: bytes = b""

    def add(self, other: "Statistics") -> None:
        """Take in other counts, all but the hashes."""
        self.samples += other.samples
        self.documents += other.documents
        self.frequency_V += other.frequency_V
        self.keywords.update(other.keywords)
        self.unusable.update(other.unusable)
        self.failed += other.failed
        for mine, theirs in ((self.tokens, other.tokens), (self.items, other.items), (self.images, other.images)):
            for name, histogram in theirs.items():
                mine[name].update(histogram)


def count_shard(shard: str, settings: CountSettings) -> Statistics:
    """The statistics of a shard; of one that cannot be read, only why."""
    counted, keys = Statistics(), []
    captions: dict[str, list[str]] = {kind: [] for kind in KINDS}
    try:
        for raw in read_shard(shard):
            keys.append(raw["__key__"])
            for kind, texts in _count_sample(raw, settings.fields, counted).items():
                captions[kind] += texts
                if len(captions[kind]) >= BATCH:
                    count_captions(captions[kind], kind, settings, counted)
                    captions[kind].clear()
    except UserError as error:
        return Statistics(failed=[str(error)])
    for kind, texts in captions.items():
        if texts:
            count_captions(texts, kind, settings, counted)
    counted.samples, counted.key_hashes = len(keys), hash_texts(keys)
    return counted


def count_captions(texts: Sequence[str], kind: str, settings: CountSettings, counted: Statistics) -> None:
    """Add captions of one kind to `counted`; documents or not, as `settings` says."""
    ids_M, lengths_N = encode_batch(texts)
    counted.tokens[kind].update((lengths_N + 2).tolist())
    if settings.kind not in (None, kind):
        return
    counted.documents += len(texts)
    counted.frequency_V += caption_frequency(ids_M, lengths_N, settings.context_length)
    found = count_combinations(texts, settings.combinations)
    names = (combination.name for combination in settings.combinations)
    counted.keywords.update(dict(zip(names, found.tolist(), strict=True)))
    counted.caption_hashes += hash_texts(texts)


def caption_frequency(ids_M: np.ndarray, lengths_N: np.ndarray, context_length: int) -> np.ndarray:
    """int64 [V]: in how many captions each id occurs, start and end token and what is cut aside.

    The same as `vlp.objectives.classification.document_frequency` of the captions' `encode_caption`, without padding.
    """
    rows_M = np.repeat(np.arange(len(lengths_N)), lengths_N)
    starts_N = np.cumsum(lengths_N) - lengths_N
    ended_M = np.concatenate([[0], np.cumsum(ids_M == END)])  # before each id; a caption may spell out the end token
    inside_M = np.arange(len(ids_M)) - starts_N[rows_M] < context_length - 2
    inside_M &= (ids_M != START) & (ended_M[1:] == ended_M[starts_N][rows_M])
    pairs = rows_M[inside_M] * VOCABULARY + ids_M[inside_M]
    pairs.sort()
    first = np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]
    return np.bincount(pairs[first] % VOCABULARY, minlength=VOCABULARY)


def _count_sample(raw: dict[str, Any], fields: FieldMap, counted: Statistics) -> dict[str, list[str]]:
    """Count a sample's picture and fields, and return its captions of each kind."""
    try:
        width, height, kind = _image_header(image_bytes(raw))
    except BadSample as reason:
        counted.unusable[str(reason)] += 1
    else:
        for name, value in (("width", width), ("height", height), ("format", kind)):
            counted.images[name][value] += 1
    try:
        annotations = read_annotations(raw)
    except BadSample as reason:
        counted.unusable[str(reason)] += 1
        annotations = {}
    captions = read_captions(annotations, fields)
    for name in captions:
        counted.items[name][len(captions[name])] += 1
    for name in ("regions", "vqa"):
        found = annotations.get(getattr(fields, name))
        items = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
        counted.items[name][len(items)] += 1
    return captions


def _image_header(data: bytes) -> tuple[int, int, str]:
    """Width, height and format by the picture's header, as stored: a camera's turn is not applied."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return *image.size, image.format
    except Image.DecompressionBombError:
        raise BadSample("image_too_large") from None
    except Exception:  # Pillow raises a dozen kinds for broken data, some of them by accident
        raise BadSample("undecodable_image") from None
