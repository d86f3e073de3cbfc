"""What `tools/prepare_statistics.py` writes and prints of the counts."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save

from vlp.annotation.gathering import FILE_CAPTIONS, Repeats
from vlp.annotation.keywords import PAPER_CAPTIONS, Combination
from vlp.annotation.statistics import KINDS, CountSettings, Statistics
from vlp.files import write_bytes, write_text

QUANTILES = {"smallest": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "largest": 1.0}


def quantile(histogram: Counter[int], share: float) -> int:
    """The smallest value that at least `share` of all occurrences do not exceed."""
    values = sorted(histogram)
    passed = np.cumsum([histogram[value] for value in values])
    return values[int(np.searchsorted(passed, share * passed[-1]))]


def mean(histogram: Counter[int]) -> float:
    return sum(value * count for value, count in histogram.items()) / histogram.total()


def summarise(statistics: Statistics, repeats: Repeats, settings: CountSettings) -> dict[str, Any]:
    """The content of `statistics.json`. Shares are fractions, histograms map a value to how often it occurs."""
    kinds = sorted(statistics.tokens, key=(*KINDS, FILE_CAPTIONS).index)
    sizes = {name: statistics.images[name] for name in ("width", "height") if statistics.images.get(name)}
    return {
        "samples": statistics.samples,
        "duplicate_keys": repeats.keys,
        "documents": {
            "kinds": [kind for kind in kinds if settings.kind in (None, kind)],
            "count": statistics.documents,
            "duplicates": repeats.captions,
            "vocabulary_used": int((statistics.frequency_V > 0).sum()),
        },
        "captions": {kind: _lengths(statistics.tokens[kind], settings.context_length) for kind in kinds},
        "context_length": settings.context_length,
        "fields": {
            field: {"share": 1 - numbers[0] / numbers.total(), "per_sample": mean(numbers)}
            for field, numbers in statistics.items.items()
        },
        "images": {
            **{name: {label: quantile(size, q) for label, q in QUANTILES.items()} for name, size in sizes.items()},
            "formats": dict(statistics.images["format"].most_common()) if sizes else {},
        },
        "unusable": dict(statistics.unusable.most_common()),
        "failed_shards": statistics.failed,
        "keywords": [
            {
                "combination": combination.name,
                "captions": statistics.keywords[combination.name],
                "percent": percent(statistics.keywords[combination.name], statistics.documents),
            }
            for combination in settings.combinations
        ],
    }


def _lengths(tokens: Counter[int], context_length: int) -> dict[str, Any]:
    cut = sum(count for length, count in tokens.items() if length > context_length)
    return {
        "count": tokens.total(),
        "tokens": {"mean": mean(tokens)} | {name: quantile(tokens, q) for name, q in QUANTILES.items()},
        "cut_share": cut / tokens.total(),
        "histogram": dict(sorted(tokens.items())),
    }


def percent(count: int, total: int) -> float:
    return 100 * count / total


def write_statistics(statistics: Statistics, summary: dict[str, Any], out: Path) -> None:
    """`statistics.safetensors`, which static IDF reads, and `statistics.json`, each whole or not at all."""
    documents = np.array([statistics.documents], dtype=np.int64)
    write_bytes(out / "statistics.safetensors", save({"frequency": statistics.frequency_V, "documents": documents}))
    write_text(out / "statistics.json", json.dumps(summary, indent=2))


# ---- printed ----------------------------------------------------------------------------------------------------


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """All but the keywords, as tables."""
    if summary["samples"]:
        console.print(f"{summary['samples']} samples, {summary['duplicate_keys']} of them with a key that came before")
    console.print(_lengths_table(summary))
    if summary["fields"]:
        console.print(_fields_table(summary["fields"]))
    if summary["images"]["formats"]:
        console.print(_images_table(summary["images"]))
    documents = summary["documents"]
    console.print(
        f"document frequencies of {documents['count']} {', '.join(documents['kinds'])} captions, "
        f"{documents['duplicates'] / documents['count']:.2%} of them the same as one before; "
        f"{documents['vocabulary_used']} tokens of the vocabulary occur"
    )
    if summary["unusable"]:
        console.print("not usable: " + ", ".join(f"{why} {count}" for why, count in summary["unusable"].items()))
    for reason in summary["failed_shards"]:
        console.print(f"not counted: {reason}")


def _lengths_table(summary: dict[str, Any]) -> Table:
    """Shares of captions by length, a column for each kind."""
    context, captions = summary["context_length"], summary["captions"]
    edges = [edge for edge in (8, 12, 16, 24, 32, 48, 64) if edge < context]
    table = Table("tokens", *captions, title="Caption lengths, with start and end token")
    for low, high in zip([2, *(edge + 1 for edge in edges)], [*edges, context], strict=True):
        shares = [
            sum(count for length, count in kind["histogram"].items() if low <= length <= high) / kind["count"]
            for kind in captions.values()
        ]
        table.add_row(f"{low}-{high}", *(f"{share:.1%}" for share in shares))
    table.add_row(f"cut at {context}", *(f"{kind['cut_share']:.1%}" for kind in captions.values()), end_section=True)
    table.add_row("captions", *(str(kind["count"]) for kind in captions.values()))
    table.add_row("mean", *(f"{kind['tokens']['mean']:.1f}" for kind in captions.values()))
    for label in QUANTILES:
        table.add_row(label, *(str(kind["tokens"][label]) for kind in captions.values()))
    return _right(table)


def _fields_table(fields: dict[str, Any]) -> Table:
    table = Table("field", "samples with it", "per sample", title="Fields")
    for field, numbers in fields.items():
        table.add_row(field, f"{numbers['share']:.1%}", f"{numbers['per_sample']:.2f}")
    return _right(table)


def _images_table(images: dict[str, Any]) -> Table:
    formats = ", ".join(f"{kind} {count}" for kind, count in images["formats"].items())
    table = Table("pixels", *QUANTILES, title=f"Pictures: {formats}")
    for side in ("width", "height"):
        table.add_row(side, *(str(images[side][label]) for label in QUANTILES))
    return _right(table)


def keyword_tables(statistics: Statistics, combinations: Sequence[Combination]) -> Iterator[Table]:
    """How many captions have each combination; of SuperCLIP's appendix its Tables 1-4, with its counts beside."""
    for number, rows in groupby(combinations, key=lambda combination: combination.table):
        title = f"SuperCLIP, appendix, Table {number}" if number else "Captions with a word of every group"
        table = Table("keywords", "captions", "%", *(["paper's", "paper's %"] if number else []), title=title)
        for combination in rows:
            counts = [(statistics.keywords[combination.name], statistics.documents)]
            if number:
                counts.append((combination.paper, PAPER_CAPTIONS))
            shown = [(str(count), f"{percent(count, total):.5f}") for count, total in counts]
            table.add_row(combination.name, *chain.from_iterable(shown))
        yield _right(table)


def _right(table: Table) -> Table:
    """The table with its numbers, all columns but the first, to the right."""
    for column in table.columns[1:]:
        column.justify = "right"
    return table
