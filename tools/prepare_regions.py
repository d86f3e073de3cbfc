"""Give the pictures of shards their regions: phrases from the long captions, boxes and scores by OWLv2.

Every shard is written to --out under its own name, with the field `regions` in its JSON:
[{"box": [0.125, 0.25, 0.75, 0.98], "phrase": "large brown dog", "score": 0.4312}]. The same command again goes on
where it stopped. Counts are in summary.json there.

Examples:
    python tools/prepare_regions.py '/data/cc3m/{00000..00331}.tar' --out /data/cc3m-regions \\
        --fields long=longLLA_captions
    python tools/prepare_regions.py '/data/yfcc/*.tar' --out /data/yfcc-regions --captions long short \\
        --engine ray --actors 16 --gpus-per-actor 0.5
"""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlp.errors import UserError, run_command

if TYPE_CHECKING:
    from vlp.annotation.regions import RegionSettings

CAPTIONS = ("long", "short", "raw")


def main() -> None:
    """Parse the command line, annotate the shards, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace patterns, or demo:train")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder for these settings alone")
    _add_phrase_options(parser.add_argument_group("phrases"))
    _add_box_options(parser.add_argument_group("boxes"))
    _add_running_options(parser.add_argument_group("running"))
    args = parser.parse_args()
    for option, value, least in (
        ("--batch-size", args.batch_size, 1),
        ("--actors", args.actors, 1),
        ("--gpus-per-actor", args.gpus_per_actor, 0),
    ):
        if value < least:
            raise UserError(f"{option} {value:g}: give {least} or more")

    from vlp.annotation.regions import check_models, pick_device, region_annotator
    from vlp.annotation.shards import annotate_shards
    from vlp.data.sources import expand_shards

    settings = _settings(args)
    shards = expand_shards(args.shards)
    if args.engine == "local":  # on a cluster, this machine need not have what the actors have
        pick_device(args.device)
    check_models(settings)
    counts = annotate_shards(
        shards,
        args.out,
        partial(region_annotator, settings, args.device),
        {"tool": "prepare_regions"} | settings.model_dump(mode="json"),
        args.batch_size,
        args.engine,
        args.actors,
        args.gpus_per_actor,
    )
    print(f"{args.out}: {len(shards)} shards, {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
    if counts["samples"] and counts["without_caption"] == counts["samples"]:
        print(
            f"no sample has {' or '.join(args.captions)} captions; name their key with --fields, as "
            f"{args.captions[0]}=KEY, or another kind with --captions"
        )


def _add_phrase_options(group: Any) -> None:
    group.add_argument(
        "--captions",
        nargs="+",
        choices=CAPTIONS,
        default=["long"],
        metavar="KIND",
        help="long (the paper's, and the default), short or raw; of several, each picture's first that it has",
    )
    group.add_argument(
        "--fields",
        nargs="+",
        action="extend",
        default=[],
        metavar="KIND=KEY",
        help="the key of the JSON that holds captions of a kind, as long=longLLA_captions, or several, as "
        "long=longLLA_captions,longSV_captions, or gets the regions, as regions=boxes (default: the same words)",
    )
    group.add_argument("--nlp", default="en_core_web_sm", metavar="NAME", help="spaCy model (default: %(default)s)")
    group.add_argument(
        "--max-phrases", type=int, default=16, metavar="N", help="of a picture, its first (default: %(default)s)"
    )


def _add_box_options(group: Any) -> None:
    group.add_argument(
        "--model",
        default="google/owlv2-base-patch16-ensemble",
        metavar="M",
        help="OWLv2 by hub name, or a folder (default: %(default)s)",
    )
    group.add_argument(
        "--prompt",
        default="{}",
        metavar="T",
        help="query, as 'a photo of a {}' (default: the phrase alone, as the paper)",
    )
    group.add_argument(
        "--score",
        type=float,
        default=0.1,
        metavar="S",
        help="boxes above it are written (default: %(default)s); training reads those from data.box_score, which "
        "thus changes without another detection",
    )
    group.add_argument(
        "--nms",
        type=float,
        default=0.5,
        metavar="IOU",
        help="of boxes of a phrase that overlap by more, the best is kept (default: %(default)s)",
    )
    group.add_argument("--max-per-phrase", type=int, default=4, metavar="N", help="boxes (default: %(default)s)")
    group.add_argument(
        "--max-regions", type=int, default=32, metavar="N", help="boxes of a picture, its best (default: %(default)s)"
    )
    group.add_argument("--replace", action="store_true", help="detect anew where a picture has regions already")


def _add_running_options(group: Any) -> None:
    group.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="pictures detected at once (default: %(default)s)"
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="of the detector (default: %(default)s, float16 on a GPU)",
    )
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="default: %(default)s")
    group.add_argument("--actors", type=int, default=1, metavar="N", help="Ray processes (default: %(default)s)")
    group.add_argument(
        "--gpus-per-actor",
        type=float,
        default=0,
        metavar="G",
        help="0.5 lets two share one, so that one decodes while the other detects (default: %(default)s)",
    )


def _settings(args: argparse.Namespace) -> "RegionSettings":
    """The settings among the options. Raises `UserError` for the first value that is not allowed."""
    from pydantic import ValidationError

    from vlp.annotation.regions import RegionSettings

    given = {name: getattr(args, name) for name in RegionSettings.model_fields} | {"fields": _fields(args.fields)}
    try:
        return RegionSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        value = " ".join(args.fields) if option == "fields" else first["input"]
        raise UserError(f"--{option} {value}: {first['msg'].removeprefix('Value error, ')}") from None


def _fields(pairs: list[str]) -> dict[str, str | list[str]]:
    """`long=a,b regions=c` as a field map's values."""
    fields: dict[str, str | list[str]] = {}
    for pair in pairs:
        kind, equals, keys = pair.partition("=")
        if not equals or kind not in (*CAPTIONS, "regions"):
            raise UserError(f"--fields {pair}: give KIND=KEY, with KIND {', '.join(CAPTIONS)} or regions")
        fields[kind] = keys.split(",") if "," in keys else keys
    return fields


if __name__ == "__main__":
    run_command(main)
