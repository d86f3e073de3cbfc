"""Count what is in shards or caption files: document frequencies, caption lengths, fields, picture sizes, keywords.

Writes statistics.safetensors, which objectives.classification.idf_file reads for idf=static, and statistics.json to
--out, and prints tables. Pictures are not decoded. Shards that cannot be read are named and not counted. The same
command again goes on where it stopped, shard by shard.

A caption file is .txt with one caption a line, or .csv, .tsv, .jsonl or .parquet with a --column of captions; all but
Parquet also with .gz or .bz2 behind.

Examples:
    python tools/prepare_statistics.py '/data/cc3m/{00000..00331}.tar' --out /data/cc3m-statistics --captions long
    python tools/prepare_statistics.py '/data/cc3m/*.tar' --out out --fields dreamlip
    python tools/prepare_statistics.py datacomp/*.parquet --column text --out out --keywords appendix
    python tools/prepare_statistics.py captions.txt --out out --keywords pairs.yaml

where pairs.yaml names groups of words, and a caption counts that has a word of every group:
    dog + ball: [[dog, dogs], [ball, balls]]
    dog + ball + catch: [[dog, dogs], [ball, balls], [catch, catches, catching]]
"""

import argparse
import os
from pathlib import Path

from vlp.annotation.options import add_engine_options, add_fields_option, check_running_options, field_map
from vlp.errors import UserError, run_command


def main() -> int:
    """Parse the command line, count, write and print. 1 when shards could not be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="shards as in data.train (tars, globs, braces), or caption files"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the statistics")
    parser.add_argument(
        "--captions",
        choices=("raw", "short", "long", "any"),
        default="any",
        help="of shards, the kind whose document frequencies and keywords are counted (default: %(default)s)",
    )
    add_fields_option(parser, "long=longLLA_captions")
    parser.add_argument(
        "--column", nargs="+", default=["caption"], metavar="NAME", help="of a table, with captions (default: caption)"
    )
    parser.add_argument(
        "--keywords", metavar="K", help="appendix for SuperCLIP's Tables 1-4, or a YAML file with groups of words"
    )
    parser.add_argument(
        "--context-length", type=int, default=77, metavar="N", help="where captions are cut (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes (default: all cores)"
    )
    add_engine_options(parser)
    args = parser.parse_args()
    check_running_options(args)
    for option, value, least in (("--workers", args.workers, 1), ("--context-length", args.context_length, 3)):
        if value < least:
            raise UserError(f"{option} {value}: give {least} or more")
    fields = field_map(args.fields)

    from rich.console import Console

    from vlp.annotation.caption_files import caption_files
    from vlp.annotation.gathering import forget_parts, gather_files, gather_shards
    from vlp.annotation.keywords import read_combinations
    from vlp.annotation.statistics import CountSettings
    from vlp.annotation.statistics_report import keyword_tables, print_summary, summarise, write_statistics
    from vlp.data.sources import expand_shards

    combinations = tuple(read_combinations(args.keywords)) if args.keywords else ()
    files = caption_files(args.sources)
    if files and args.captions != "any":
        raise UserError(f"--captions {args.captions}: caption files have no kinds; choose by --column, or give shards")
    shards = [] if files else expand_shards(args.sources)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be written ({error.strerror}); give another folder") from None

    kind = None if args.captions == "any" else args.captions
    settings = CountSettings(fields, kind, args.context_length, combinations)
    if files:
        statistics, repeats = gather_files(files, args.column, settings, args.workers)
    else:
        statistics, repeats = gather_shards(shards, settings, args.out, args.workers, args.engine, args.actors)
    if not statistics.documents:
        why = f" ({statistics.failed[0]})" if statistics.failed else ""
        raise UserError(
            f"no caption was found among {statistics.samples} samples{why}; name the keys that hold captions with "
            "--fields, as raw=caption, or another kind with --captions"
        )
    summary = summarise(statistics, repeats, settings)
    write_statistics(statistics, summary, args.out)
    if shards and not statistics.failed:
        forget_parts(shards, settings, args.out)
    console = Console()
    print_summary(summary, console)
    for table in keyword_tables(statistics, combinations):
        console.print(table)
    console.print(f"{args.out}/statistics.safetensors, statistics.json")
    return 1 if statistics.failed else 0


if __name__ == "__main__":
    run_command(main)
