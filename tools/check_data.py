"""Check the data that a recipe would train on: what is wrong, how to mend it, and how fast it is read.

Reads samples as training would, of shards spread over the whole set, and tells of missing fields, bad captions, boxes,
questions and pictures, shards and lengths. A page shows samples as the model gets them. It ends with the images per
second of the loader on this machine.

Examples:
    python tools/check_data.py recipes/goldi_super.yaml
    python tools/check_data.py recipes/flair.yaml scale=cc3m 'data.train=/data/cc3m/{00000..00331}.tar' \\
        data.fields.long=longSV_captions --ranks 8 --images-per-second 900

Exit code 1 when training would stop or an objective would get nothing, else 0.
"""

import argparse
from pathlib import Path

from vlp.errors import UserError, run_command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe's YAML, or the recipe.yaml of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in data.streams=8; the last one wins")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="to look at (default: %(default)s)")
    parser.add_argument(
        "--pictures",
        type=int,
        default=24,
        metavar="N",
        help="samples on the page; 0 writes none (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: RUN-data.html beside the run folder)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is printed as JSON")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="to measure the loader; 0 does not (default: %(default)g)",
    )
    parser.add_argument(
        "--images-per-second",
        type=float,
        metavar="M",
        help="what a rank trains at: samples_per_second / ranks of a run",
    )
    parser.add_argument("--ranks", type=int, metavar="R", help="processes of the run (default: $WORLD_SIZE, else 1)")
    arguments = parser.parse_intermixed_args()
    for option, least in (("samples", 1), ("pictures", 0), ("seconds", 0), ("ranks", 1), ("images_per_second", 1e-9)):
        value = getattr(arguments, option)
        if value is not None and not least <= value < float("inf"):
            allowed = "more than 0" if option == "images_per_second" else f"{least} or more"
            raise UserError(f"--{option.replace('_', '-')}: given {value:g}; allowed is {allowed}")

    import os
    import sys

    from rich.console import Console

    from vlp.data_report.contact_sheet import write_contact_sheet
    from vlp.data_report.report import check_data
    from vlp.data_report.tables import print_report, print_speed
    from vlp.data_report.throughput import loader_stops, measure
    from vlp.files import write_text
    from vlp.recipe import load_recipe

    ranks = arguments.ranks or int(os.environ.get("WORLD_SIZE", 1))
    recipe = load_recipe(arguments.recipe, arguments.overrides, ranks)
    page = arguments.out or recipe.run_dir.with_name(f"{recipe.run_dir.name}-data.html")
    for path in [page] * (arguments.pictures > 0) + [arguments.json] * (arguments.json is not None):
        _make_room(path)

    report, samples = check_data(recipe, arguments.samples, arguments.pictures, ranks)
    if arguments.seconds and report.usable:
        try:
            report.speeds = measure(recipe, arguments.seconds)
        except UserError as error:
            report.add(loader_stops(error))
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    print_report(report, console)
    if arguments.pictures:
        write_contact_sheet(page, recipe, report, samples)
        console.print(f"\n{page} shows {len(samples)} of the samples", markup=False, soft_wrap=True)
    if report.speeds:
        console.print()
        print_speed(report.speeds, arguments.images_per_second, ranks, console)
    if arguments.json:
        write_text(arguments.json, report.to_json())
    return 1 if report.errors else 0


def _make_room(path: Path) -> None:
    """The folder of a file that will be written. Raises `UserError` where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give another name") from None


if __name__ == "__main__":
    run_command(main)
