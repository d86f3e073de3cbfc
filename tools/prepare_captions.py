"""Join captions from CSV, JSON lines or Parquet files to the samples of WebDataset shards.

Each shard becomes one of the same name in --out, where the JSON of a sample also has the captions that were found for
it, as the lists `raw`, `short` and `long`. Samples without captions stay as they are, and are counted. Shards that are
already in --out are not made again: the same command goes on where it was stopped.

The captions are read once into an index on disk, about as large as the files uncompressed. It lies in --index, is used
again as long as the files are the same, and can be deleted afterwards. Keys are compared as they are, but for white
space around them. Captions of several rows with one key are all joined.

Examples:
    python tools/prepare_captions.py '/data/cc3m/{00000..00331}.tar' --layout dreamlip \\
        --captions cc3m_3long_3short_1raw_captions_url.csv --out /data/cc3m-recap
    python tools/prepare_captions.py '/data/datacomp/*.tar' --layout recap_datacomp --by sha256 \\
        --captions train-*.parquet --out /data/recap-datacomp --engine ray --actors 32
    python tools/prepare_captions.py '/data/own/*.tar' --by key=image_id --columns raw=title long=blip,llava \\
        --captions own.jsonl.gz --out /data/own-captions
"""

import argparse
from functools import partial
from pathlib import Path

from vlp.data.layouts import LAYOUTS
from vlp.errors import UserError, run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs or brace patterns")
    parser.add_argument(
        "--captions",
        nargs="+",
        required=True,
        type=Path,
        metavar="FILE",
        help=".csv, .tsv, .jsonl (also .gz, .bz2) or .parquet",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the shards with captions")
    parser.add_argument(
        "--by",
        default="url",
        metavar="FIELD[=COLUMN,...]",
        help="what is joined by: a field of the samples' JSON, or 'key' for their name in the shard; and the captions' "
        "column, where it has another name (default: %(default)s)",
    )
    parser.add_argument(
        "--layout",
        nargs="+",
        default=[],
        choices=list(LAYOUTS),
        help="known sets of columns",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="KIND=COLUMN,...",
        help="which columns hold captions of the kinds raw, short and long",
    )
    parser.add_argument("--index", type=Path, metavar="DIR", help="folder of the captions' index (default: --out)")
    parser.add_argument("--replace", action="store_true", help="new captions take the place of those of their kind")
    parser.add_argument("--drop-unmatched", action="store_true", help="leave out the samples that have no captions")
    parser.add_argument(
        "--allow-unmatched", action="store_true", help="go on when no sample of the first shard has captions"
    )
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="default: %(default)s")
    parser.add_argument("--actors", type=int, default=1, metavar="N", help="processes of --engine ray")
    args = parser.parse_args()
    if args.actors < 1:
        raise UserError(f"--actors {args.actors}: give 1 or more")

    from vlp.annotation.captions import caption_source, check_field, check_match, make_join, prepare_index, report
    from vlp.annotation.shards import annotate_shards, claim
    from vlp.data.sources import expand_shards

    shards = expand_shards(args.shards)
    field, source = caption_source(args.captions, args.by, args.layout, args.columns)
    check_field(shards, field)
    print(f"{field} = {' or '.join(source.keys)}")
    for kind, columns in source.columns.items():
        print(f"{kind} += {', '.join(columns)}")

    settings = {"tool": "prepare_captions"} | source.identity
    settings |= {"by": field, "replace": args.replace, "drop": args.drop_unmatched}
    claim(args.out, settings, shards)  # before the index, which can take an hour
    index, facts = prepare_index(source, args.index or args.out)
    print(f"{facts['rows']} rows of captions with {facts['keys']} keys (most rows of one key: {facts['most_rows']})")
    if facts["bad"]:
        print(f"left out: {', '.join(f'{reason} {count}' for reason, count in facts['bad'].items())}")
    if not args.allow_unmatched:
        check_match(shards, field, index)

    make = partial(make_join, index, field, args.replace, args.drop_unmatched)
    counts = annotate_shards(shards, args.out, make, settings, engine=args.engine, actors=args.actors)
    for line in report(counts, facts, field, index, args.out):
        print(line)
    print(f"{args.out} holds {len(shards)} shards; the index {index} can be deleted")


if __name__ == "__main__":
    run_command(main)
