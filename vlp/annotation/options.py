"""Options that the tools over shards share, and how what was given becomes settings."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from vlp.data.layouts import LAYOUTS
from vlp.errors import UserError, nearest
from vlp.settings import FieldMap, Section

if TYPE_CHECKING:
    from vlp.annotation.shards import Annotate

S = TypeVar("S", bound=Section)


def add_shard_arguments(parser: ArgumentParser) -> None:
    """Which shards are read, and where they are written."""
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace patterns, or demo:train")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder for these settings alone")


def annotate_as_asked(
    args: Namespace,
    shards: list[str],
    make: Callable[[], "Annotate"],
    settings: dict[str, Any],
    batch_size: int,
    captions: str,
    kind: str,
) -> None:
    """`annotate_shards` with these options, and its counts printed.

    Args:
        captions: what is read of a sample, as "a short caption 0"; where no sample has it, a hint is printed.
        kind: its kind, for the hint.
    """
    from vlp.annotation.shards import annotate_shards

    counts = annotate_shards(
        shards, args.out, make, settings, batch_size, args.engine, args.actors, args.gpus_per_actor
    )
    print(f"{args.out}: {len(shards)} shards, {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
    if counts["samples"] and counts["without_caption"] == counts["samples"]:
        print(f"no sample has {captions}; name their key with --fields, as {kind}=KEY, or another kind with --captions")


def add_fields_option(group: Any, example: str) -> None:
    """`--fields`, read by `field_map`; `example` is one value of it."""
    group.add_argument(
        "--fields",
        nargs="+",
        action="extend",
        default=[],
        metavar="KIND=KEY",
        help=f"the keys of the samples' JSON for {', '.join(FieldMap.model_fields)}, as {example}; captions may have "
        f"several, with commas; or a known layout: {', '.join(LAYOUTS)} (default: the same words)",
    )


def field_map(given: list[str]) -> FieldMap:
    """What `--fields` says. Raises `UserError` for what is neither a layout nor KIND=KEY,..."""
    fields: dict[str, Any] = {}
    for text in given:
        kind, equals, keys = text.partition("=")
        if text in LAYOUTS:
            fields |= FieldMap.model_validate(text).model_dump()
            continue
        if not equals or kind not in FieldMap.model_fields or not all(keys.split(",")):
            allowed = list(FieldMap.model_fields)
            raise UserError(
                f"--fields {text}: give KIND=KEY with KIND {', '.join(allowed)}, or a layout: {', '.join(LAYOUTS)}"
                f"{nearest(kind, [*LAYOUTS, *allowed]) if kind not in allowed else ''}"
            )
        fields[kind] = keys.split(",") if "," in keys else keys
    try:
        return FieldMap.model_validate(fields)
    except ValidationError as error:
        kind = error.errors()[0]["loc"][0]
        raise UserError(f"--fields {kind}={','.join(fields[kind])}: {kind} is one key") from None


def add_running_options(group: Any, batch_size: int, unit: str) -> None:
    """How many are annotated at once, and where; checked by `check_running_options`."""
    group.add_argument(
        "--batch-size", type=int, default=batch_size, metavar="N", help=f"{unit} at once (default: %(default)s)"
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add_engine_options(group)
    group.add_argument(
        "--gpus-per-actor",
        type=float,
        default=0,
        metavar="G",
        help="0.5 lets two share one, so that one reads while the other computes (default: %(default)s)",
    )


def add_engine_options(group: Any) -> None:
    """`--engine` and `--actors`."""
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="this process, or a Ray cluster (default: local)"
    )
    group.add_argument("--actors", type=int, default=1, metavar="N", help="Ray processes (default: %(default)s)")


def check_running_options(args: Namespace) -> None:
    """Raises `UserError` for a number of these options that is too small."""
    for name, least in (("batch_size", 1), ("actors", 1), ("gpus_per_actor", 0)):
        value = getattr(args, name, least)
        if not value >= least:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: give {least} or more")


def settings_of(kind: type[S], given: dict[str, Any]) -> S:
    """The settings among the options. Raises `UserError` for the first value that is not allowed."""
    try:
        return kind.model_validate({name: given[name] for name in kind.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UserError(f"--{option} {first['input']}: {first['msg'].removeprefix('Value error, ')}") from None
