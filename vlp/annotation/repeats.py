"""How many of a stream of texts occurred before: exact, in bounded memory.

Every text is a 64-bit hash in a file. To count, the hashes are gone through in as many parts, by their remainder, as
make each part small enough to be sorted in memory. Two different texts of ten million have one hash with probability
3e-6.
"""

from collections.abc import Iterable
from hashlib import blake2b
from math import ceil
from typing import BinaryIO

import numpy as np

CHUNK = 1 << 20


def hash_texts(texts: Iterable[str]) -> bytes:
    """8 bytes for each text, the same in every process."""
    return b"".join(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)


def count_repeats(hashes: BinaryIO, at_once: int = 1 << 22) -> int:
    """How many of the hashes in a file occur earlier in it. About `at_once` of them, 8 bytes each, are in memory."""
    parts = ceil(hashes.seek(0, 2) / 8 / at_once)
    return sum(_repeats(_part(hashes, part, parts)) for part in range(parts))


def _part(hashes: BinaryIO, part: int, parts: int) -> np.ndarray:
    hashes.seek(0)
    found = []
    while block := hashes.read(8 * CHUNK):
        chunk = np.frombuffer(block, dtype=np.uint64)
        found.append(chunk[chunk % np.uint64(parts) == part])
    return np.concatenate(found)


def _repeats(hashes: np.ndarray) -> int:
    hashes.sort()
    return int((hashes[1:] == hashes[:-1]).sum())
