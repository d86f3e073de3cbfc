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
from typing import Any

from vlp.annotation.options import (
    add_fields_option,
    add_running_options,
    add_shard_arguments,
    annotate_as_asked,
    check_running_options,
    field_map,
    settings_of,
)
from vlp.errors import run_command

CAPTIONS = ("long", "short", "raw")


def main() -> None:
    """Parse the command line, annotate the shards, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shard_arguments(parser)
    _add_phrase_options(parser.add_argument_group("phrases"))
    _add_box_options(parser.add_argument_group("boxes"))
    _add_running_options(parser.add_argument_group("running"))
    args = parser.parse_args()
    check_running_options(args)

    from vlp.annotation.regions import RegionSettings, check_models, pick_device, region_annotator
    from vlp.data.sources import expand_shards

    settings = settings_of(RegionSettings, vars(args) | {"fields": field_map(args.fields)})
    shards = expand_shards(args.shards)
    if args.engine == "local":  # on a cluster, this machine need not have what the actors have
        pick_device(args.device)
    check_models(settings)
    annotate_as_asked(
        args,
        shards,
        partial(region_annotator, settings, args.device),
        {"tool": "prepare_regions"} | settings.model_dump(mode="json"),
        args.batch_size,
        captions=f"{' or '.join(args.captions)} captions",
        kind=args.captions[0],
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
        "--index", type=int, metavar="N", help="which caption of the kind alone, from 0 (default: all of them)"
    )
    add_fields_option(group, "long=longLLA_captions")
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
        "--precision",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="of the detector (default: %(default)s, float16 on a GPU)",
    )
    add_running_options(group, batch_size=16, unit="pictures")


if __name__ == "__main__":
    run_command(main)
