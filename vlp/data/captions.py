"""Which caption of a sample is read: kinds, sentence splitting, and FLAIR's diverse sampling."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sentencex import segment

from vlp.settings import FieldMap

CaptionKind = Literal["raw", "short", "long", "any", "mixed", "diverse", "sentence", "passage"]
"""Whole captions of a field or of any, short or long ones by chance; FLAIR's draws; single sentences; COSMOS' draws."""
_END_MARK = re.compile(r"\n|</s>|\s\.+(?=\s|$)|\.{2,}(?=\s|$)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+")
LONGEST = 10_000
"""Characters of a caption that are read; 77 tokens are some hundred."""


def caption_fields(kind: str) -> tuple[str, ...]:
    """The fields of the data that can serve a kind of caption."""
    if kind == "mixed":
        return ("short", "long")
    return (kind,) if kind in ("raw", "short", "long") else ("raw", "short", "long")


@dataclass(frozen=True)
class CaptionRequest:
    """`count` captions of one kind for every image; `long_share` is the probability that a mixed one is long (C6)."""

    kind: CaptionKind
    count: int = 1
    long_share: float = 0.2

    @property
    def name(self) -> str:
        kind = f"{self.kind}{self.long_share:g}" if self.kind == "mixed" else self.kind
        return kind if self.count == 1 else f"{kind}x{self.count}"

    @property
    def fields(self) -> tuple[str, ...]:
        """The caption fields that can serve it."""
        return caption_fields(self.kind)


def read_captions(annotations: Mapping[str, Any], fields: FieldMap) -> dict[str, list[str]]:
    """The captions of each kind by the field map, none empty or twice. A value may be a string or a list of them."""
    captions = {}
    for kind in ("raw", "short", "long"):
        names = getattr(fields, kind) or []
        texts: list[str] = []
        for name in [names] if isinstance(names, str) else names:
            value = annotations.get(name)
            values = value if isinstance(value, list) else [value]
            cleaned = (clean(text) for text in values if isinstance(text, str))
            texts += [text for text in cleaned if text]
        captions[kind] = list(dict.fromkeys(texts))
    return captions


def clean(text: str) -> str:
    """The caption without control characters and surrounding space, cut at `LONGEST` characters."""
    return _CONTROL.sub(" ", text[:LONGEST]).strip()


def split_sentences(text: str) -> list[str]:
    """Sentences without their full stop: split at newlines, `</s>`, and where a sentence ends, which is not at every
    full stop ("Mr.", "3.5", "U.S."): sentencex knows the abbreviations [docs/method.md 2, Captions]."""
    parts = (sentence for part in _END_MARK.split(text) if part.strip() for sentence in segment("en", part))
    stripped = (sentence.strip().removesuffix(".").strip() for sentence in parts)
    return [sentence for sentence in stripped if sentence.strip(".")]


def sample_captions(captions: Mapping[str, list[str]], request: CaptionRequest, rng: np.random.Generator) -> list[str]:
    """`request.count` captions; an empty list when the sample has none of that kind."""
    texts = [text for kind in request.fields for text in captions[kind]]
    if not texts:
        return []
    if request.kind == "mixed":
        return [mixed_caption(captions, request.long_share, rng) for _ in range(request.count)]
    if request.kind in ("diverse", "sentence", "passage"):
        texts = [sentence for text in texts for sentence in split_sentences(text)]
        if not texts:
            return []
    if request.kind == "diverse":
        return [diverse_caption(texts, rng) for _ in range(request.count)]
    if request.kind == "passage":
        return [passage(texts, rng) for _ in range(request.count)]
    if len(texts) >= request.count:
        return [texts[i] for i in rng.permutation(len(texts))[: request.count]]
    return [texts[i] for i in rng.integers(0, len(texts), request.count)]


def mixed_caption(captions: Mapping[str, list[str]], long_share: float, rng: np.random.Generator) -> str:
    """One caption: long with that probability, else short; of the other kind where the sample has none."""
    kinds = ("long", "short") if rng.random() < long_share else ("short", "long")
    texts = next(captions[kind] for kind in kinds if captions[kind])
    return texts[rng.integers(len(texts))]


def diverse_caption(sentences: list[str], rng: np.random.Generator) -> str:
    """One of FLAIR's draws: one to three sentences, consecutive or random, joined by ". ".

    m ~ U{1,2,3}; m = 1 is one random sentence, else half the time m consecutive ones (the start drawn from
    [0, n-m), as the released code does), half the time m random ones; n <= m returns all.
    """
    n, m = len(sentences), int(rng.integers(1, 4))
    if n <= m:
        return ". ".join(sentences)
    if m > 1 and rng.random() < 0.5:
        start = int(rng.integers(0, n - m))
        return ". ".join(sentences[start : start + m])
    return ". ".join(sentences[i] for i in rng.choice(n, m, replace=False))


def passage(sentences: list[str], rng: np.random.Generator) -> str:
    """One of COSMOS' global texts: one to five random sentences in random order, joined by ". "."""
    count = min(len(sentences), int(rng.integers(1, 6)))
    return ". ".join(sentences[i] for i in rng.choice(len(sentences), count, replace=False))
