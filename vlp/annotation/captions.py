"""Captions of tables joined to the samples of shards: known column sets, what is joined by what, and the report."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from vlp.annotation.caption_index import Captions, CaptionSource, as_key, build_index, index_facts, open_index
from vlp.annotation.caption_tables import table_columns
from vlp.annotation.shards import Annotate, Item
from vlp.data.layouts import LAYOUTS
from vlp.data.shards import BadSample, read_json, read_shard
from vlp.errors import UserError, nearest
from vlp.settings import FieldMap

KINDS = ("raw", "short", "long")
EXAMPLES = 3


# ---- what is read -----------------------------------------------------------------------------------------------


def caption_source(
    files: Sequence[Path], by: str, layouts: Sequence[str] = (), columns: Sequence[str] = ()
) -> tuple[str, CaptionSource]:
    """The field of the samples that is joined by, and what is read from the caption files.

    Args:
        by: `FIELD` or `FIELD=COLUMN,...`: without columns, those of the layouts, or the one of the field's name.
        layouts: names of `LAYOUTS`; those of their columns that no file has are left out.
        columns: `KIND=COLUMN,...`, each of which some file must have.

    Raises:
        UserError: for words that are no such choice, a file that is none, or columns that the files lack.
    """
    field, _, names = by.partition("=")
    keys = _names(names) or [LAYOUTS[name].url if field == "url" else field for name in layouts] or [field]
    chosen: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in layouts:
        for kind, layout_columns in LAYOUTS[name].columns.items():
            chosen[kind] += layout_columns
    given = [_kind_and_columns(text) for text in columns]
    for kind, more in given:
        chosen[kind] += more
    for path in files:
        if not path.is_file():
            raise UserError(f"--captions {path} is no file; name the files themselves, as folder/*.parquet")
    tables = {path: table_columns(path) for path in files}
    present = dict.fromkeys(column for names in tables.values() for column in names)
    for column in [column for _, more in given for column in more]:
        if column not in present:
            raise UserError(
                f"--columns: no file has '{column}'{nearest(column, list(present))}; columns: {_listed(present)}"
            )
    used = {kind: tuple(dict.fromkeys(c for c in names if c in present)) for kind, names in chosen.items()}
    used = {kind: names for kind, names in used.items() if names}
    captions = {column for names in used.values() for column in names}
    for path, table in tables.items():
        if not captions.intersection(table):
            raise UserError(
                f"--captions {path}: none of its columns is chosen; it has {_listed(table)}. Name them, as --columns "
                f"raw=caption long=a,b, or a --layout: {', '.join(LAYOUTS)}"
            )
        if not set(keys).intersection(table):
            raise UserError(
                f"--captions {path}: no column {' or '.join(keys)} to join by; it has {_listed(table)}. Name the "
                f"column that holds the samples' {field}, as --by '{field}=COLUMN'"
            )
    return field, CaptionSource(tuple(files), tuple(dict.fromkeys(key for key in keys if key in present)), used)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _kind_and_columns(text: str) -> tuple[str, list[str]]:
    kind, _, names = text.partition("=")
    if kind not in KINDS or not _names(names):
        hint = "" if kind in KINDS else nearest(kind, list(KINDS))
        raise UserError(f"--columns {text}: write KIND=COLUMN,COLUMN where KIND is {', '.join(KINDS)}{hint}")
    return kind, _names(names)


def _listed(columns: Sequence[str] | dict[str, None]) -> str:
    names = list(columns)
    return (", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if names[20:] else "")) or "none"


def prepare_index(source: CaptionSource, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The index of the captions in `folder`, made when it is not there yet, and what it holds. Raises `UserError`."""
    path = source.index_path(folder)
    if not path.exists():
        build_index(source, path)
    return path, index_facts(path)


# ---- the join ---------------------------------------------------------------------------------------------------


def make_join(index: Path, field: str, replace: bool = False, drop: bool = False) -> Annotate:
    """Adds to each sample the captions that the index has for its `field`, under `raw`, `short` and `long`.

    A sample keeps the captions that it has, those of its text file too, before the new ones; with `replace` a kind
    that the index has takes their place. No caption is there twice. With `drop` samples that the index does not have
    are left out.
    """
    look_up = open_index(index)

    def join(items: list[Item]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for item in items:
            key = sample_key(item.key, item.annotations, field)
            captions = look_up(key) if key is not None else {}
            if captions:
                counts["matched"] += 1
                counts.update(_add_captions(item, captions, replace))
            else:
                counts["unmatched" if key is not None else f"no_{field}"] += 1
                item.drop = drop
        return counts

    return join


def sample_key(name: str, annotations: dict[str, Any], field: str) -> str | None:
    """What a sample is joined by: `key` is its name in the shard, any other field one of its JSON."""
    return name if field == "key" else as_key(annotations.get(field))


def _add_captions(item: Item, captions: Captions, replace: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    for kind, before in item.captions(FieldMap()).items():
        after = before
        if kind in captions:
            after = list(dict.fromkeys(captions[kind] if replace else before + captions[kind]))
            item.annotations[kind] = after
        counts[f"{kind}_captions"] += len(after)
        counts[f"{kind}_new"] += len(set(after) - set(before))
    return counts


# ---- checks before, report after --------------------------------------------------------------------------------


def check_field(shards: list[str], field: str) -> None:
    """Raise `UserError` when none of the first samples has the field that is joined by."""
    first = list(islice(_first_samples(shards), 100))
    if first and all(sample_key(name, annotations, field) is None for name, annotations in first):
        raise UserError(
            f"--by {field}: the first {len(first)} samples have no such field; their JSON has "
            f"{_listed(first[0][1])}. Name one of them, or 'key' for the samples' names"
        )


def check_match(shards: list[str], field: str, index: Path) -> None:
    """Raise `UserError` when no sample of the first shard has captions. Reads up to the first that has."""
    look_up, missed = open_index(index), []
    for name, annotations in _first_samples(shards):
        key = sample_key(name, annotations, field)
        if key is not None and look_up(key):
            return
        missed += [key] if key is not None else []
    if missed:
        raise UserError(
            f"none of the {len(missed)} samples of the first shard has captions: their {field} is as "
            f"{_quoted(missed)}, the captions' keys are as {_quoted(index_facts(index)['examples'])}. Join --by "
            "another field or column, or go on all the same with --allow-unmatched"
        )


def report(counts: Counter[str], facts: dict[str, Any], field: str, index: Path, out: Path) -> list[str]:
    """Lines that say what was joined: shares, captions per sample, and how keys look that were not found."""
    samples, matched, unmatched = counts["samples"], counts["matched"], counts["unmatched"]
    lines = [f"{matched} of {samples} samples have captions now ({matched / max(samples, 1):.1%})"]
    reasons = {"not in the captions": unmatched, f"without {field}": counts[f"no_{field}"]}
    reasons["with JSON that cannot be read"] = counts["unreadable_json"]
    lines += [f"  {count} {reason}" for reason, count in reasons.items() if count]
    if matched:
        kinds = [f"{kind} {counts[f'{kind}_captions'] / matched:.2f}" for kind in KINDS]
        added = [f"{kind} {counts[f'{kind}_new'] / matched:.2f}" for kind in KINDS]
        lines.append(f"captions per matched sample: {', '.join(kinds)}; new of these: {', '.join(added)}")
    if unused := max(facts["keys"] - matched, 0):
        lines.append(f"at least {unused} of the captions' {facts['keys']} keys belong to none of these samples")
    if unmatched:
        lines.append(f"not found, as {_quoted(unmatched_keys(out, field, open_index(index)))}")
        lines.append(f"the captions' keys, as {_quoted(facts['examples'])}")
    return lines


def unmatched_keys(out: Path, field: str, look_up: Callable[[str], Captions]) -> list[str]:
    """Some keys without captions, from the written shard that has most of them."""
    stats = {path: json.loads(path.read_text()).get("unmatched", 0) for path in out.glob("*_stats.json")}
    name = max(stats, key=stats.__getitem__).name.removesuffix("_stats.json")
    keys = (sample_key(sample, annotations, field) for sample, annotations in _samples(str(out / f"{name}.tar")))
    return list(islice((key for key in keys if key is not None and not look_up(key)), EXAMPLES))


def _first_samples(shards: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The samples of the first shard that has any. One that cannot be read is passed over: annotating reports it."""
    for shard in shards:
        found = False
        with suppress(UserError):
            for sample in _samples(shard):
                found = True
                yield sample
        if found:
            return


def _samples(shard: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and JSON of the samples of a shard, but for those whose JSON is broken."""
    for raw in read_shard(shard):
        with suppress(BadSample):
            yield raw["__key__"], read_json(raw)


def _quoted(keys: list[str]) -> str:
    return ", ".join(f"'{key[:150]}'" for key in keys[:EXAMPLES])
