"""CLIP's byte-pair tokens: ids of variable length, padded only when a batch is put together."""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

VOCABULARY = 49_408
START, END, PAD = 49_406, 49_407, 0


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@lru_cache(maxsize=65_536)
def encode(text: str) -> tuple[int, ...]:
    """Byte-pair ids of `text` without start and end token."""
    return tuple(_tokenizer().encode(text))


def encode_caption(text: str, context_length: int) -> list[int]:
    """Start token, text, end token; a longer text is cut and its last id becomes the end token, as CLIP does."""
    ids = [START, *encode(text), END]
    return ids if len(ids) <= context_length else [*ids[: context_length - 1], END]


def pad(sequences: Sequence[Sequence[int]], context_length: int) -> Tensor:
    """int64 [N, L]: L is the longest sequence rounded up to a multiple of 8, at most `context_length`."""
    longest = max(map(len, sequences), default=1)
    padded = np.full((len(sequences), min(context_length, -8 * (-longest // 8))), PAD, dtype=np.int64)
    for row, ids in zip(padded, sequences, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(padded)


def tokenize(texts: Sequence[str], context_length: int) -> Tensor:
    """int64 [N, L] ids of whole captions, cut to the longest of them."""
    return pad([encode_caption(text, context_length) for text in texts], context_length)
