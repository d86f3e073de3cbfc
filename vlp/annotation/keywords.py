"""Keyword co-occurrence: how many captions have a word of every group [docs/method.md 1, Keyword counts].

Words are whole, their case does not matter, and only the listed inflections count (C8).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vlp.errors import UserError

_WORDS = re.compile(r"\w+")
_HOW = "as in 'dog + ball: [[dog, dogs], [ball]]', single words of letters and digits"
PAPER_CAPTIONS = 10_000_000
"""Captions of DataComp-1B that SuperCLIP's appendix searched."""


@dataclass(frozen=True)
class Combination:
    """A caption has it when it has one word of each group. `paper` is the count in SuperCLIP's appendix."""

    name: str
    groups: tuple[frozenset[str], ...]
    paper: int | None = None
    table: str = ""


def read_combinations(source: str) -> list[Combination]:
    """SuperCLIP's tables for `appendix`, else a YAML file's: a mapping of names to lists of groups of words.

    Raises:
        UserError: when there is no such file, or something else is in it.
    """
    if source == "appendix":
        return appendix()
    try:
        content = yaml.safe_load(Path(source).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "problem", None) or "it is no text"
        raise UserError(f"--keywords {source}: cannot be read ({reason}); give appendix, or a YAML file") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"--keywords {source}: names with groups of words belong there, {_HOW}")
    return [Combination(str(name), _groups(groups, f"{source}: {name}")) for name, groups in content.items()]


def _groups(groups: Any, where: str) -> tuple[frozenset[str], ...]:
    if not isinstance(groups, list) or not groups:
        raise UserError(f"--keywords {where}: a list of groups of words belongs there, {_HOW}")
    lists = [[group] if isinstance(group, str) else group for group in groups]
    for words in lists:
        for word in words if isinstance(words, list) and words else [words]:
            if not isinstance(word, str) or not _WORDS.fullmatch(word):
                hint = "; YAML reads on, off, yes, no and numbers as other things than words, quote them"
                raise UserError(
                    f"--keywords {where}: {word!r} is no word, {_HOW}{'' if isinstance(word, str) else hint}"
                )
    return tuple(frozenset(word.lower() for word in words) for words in lists)


def count_combinations(texts: Sequence[str], combinations: Sequence[Combination]) -> np.ndarray:
    """int64 [C]: how many of the captions have each combination."""
    vocabulary = frozenset().union(*(group for combination in combinations for group in combination.groups))
    found = Counter(vocabulary.intersection(_WORDS.findall(text.lower())) for text in texts)
    found.pop(frozenset(), None)
    counts = [
        sum(count for words, count in found.items() if not any(map(words.isdisjoint, combination.groups)))
        for combination in combinations
    ]
    return np.array(counts, dtype=np.int64)


def appendix() -> list[Combination]:
    """The combinations of SuperCLIP's appendix A.2, Tables 1-4, with its counts."""
    rows = (
        ("1", "animal(s) + tree", ("animal animals", "tree"), 367, "play(ing)", "play playing", 2),
        ("1", "cat + car", ("cat", "car"), 216, "orange/grey", "orange grey", 6),
        ("2", "airplane + runway", ("airplane", "runway"), 58, "takeoff", "takeoff", 3),
        ("2", "sheep + hill", ("sheep", "hill"), 32, "herd", "herd", 1),
        ("3", "sign + road", ("sign", "road"), 1300, "yellow/orange", "yellow orange", 59),
        ("3", "cat + toilet", ("cat", "toilet"), 68, "closed/open", "closed open", 1),
        ("4", "man + tie", ("man", "tie"), 273, "fix(es/ing)", "fix fixes fixing", 0),
        ("4", "cat + screen", ("cat", "screen"), 38, "watch/look(ing)", "watch watching look looking", 2),
    )
    combinations = []
    for table, pair, words, pairs, attribute, more, triples in rows:
        groups = tuple(frozenset(group.split()) for group in words)
        combinations.append(Combination(pair, groups, pairs, table))
        combinations.append(Combination(f"{pair} + {attribute}", (*groups, frozenset(more.split())), triples, table))
    return combinations
