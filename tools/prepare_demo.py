"""Make the embedded demo set: emoji scenes as WebDataset shards."""

import argparse
import json
from pathlib import Path

from vlp.data.emoji_shards import DemoSet, demo_shards, write_demo_set
from vlp.errors import UserError, run_command

EXAMPLE = "example: python tools/prepare_demo.py --cache /data/vlp"


def main() -> None:
    """Parse the command line, make the set, print where it is and what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE)
    default = DemoSet()
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--cache", metavar="DIR", help="cache folder (default: $VLP_CACHE, else ~/.cache/vlp)")
    target.add_argument("--out", metavar="DIR", type=Path, help="write into this new folder instead of a cache")
    parser.add_argument("--train", type=int, default=default.train, help="training scenes (default: %(default)s)")
    parser.add_argument(
        "--validation", type=int, default=default.validation, help="validation scenes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of the scenes (default: %(default)s)")
    args = parser.parse_args()

    settings = DemoSet(train=args.train, validation=args.validation, seed=args.seed)
    if args.out is None:
        folder = demo_shards(args.cache, settings)
    elif args.out.exists():
        raise UserError(f"--out {args.out} already exists; name a new folder")
    else:
        folder = args.out
        write_demo_set(folder, settings)
    summary = json.loads((folder / "summary.json").read_text())
    print(folder)
    print(
        f"{summary['train']} training and {summary['validation']} validation scenes of {summary['classes']} kinds of "
        f"objects, seed {summary['seed']}, version {summary['version']}; {len(summary['held_out_backgrounds'])} "
        f"object-background and {len(summary['held_out_pairs'])} object-object pairs are in no training scene"
    )


if __name__ == "__main__":
    run_command(main)
