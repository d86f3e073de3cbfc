"""Show what a recipe computes: data fields, passes, features, objectives, their parameters and FLOPs.

Examples:
    python tools/show_graph.py recipes/clip.yaml scale=datacomp_b16
    python tools/show_graph.py recipes/goldi_super.yaml --draw graph.svg --json graph.json

Nothing is trained, and no data set is needed.
"""

import argparse
from pathlib import Path

from vlp.errors import UserError, run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe's YAML, or the recipe.yaml of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in scale=open30m; the last one wins")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the graph: an .svg or a .png")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is shown as JSON")
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="length of every caption (default: as in the demo set, 5 to 64 tokens)"
    )
    arguments = parser.parse_intermixed_args()
    for path, suffixes in ((arguments.draw, (".svg", ".png")), (arguments.json, (".json",))):
        if path is not None and path.suffix not in suffixes:
            raise UserError(f"{path}: the name must end in {' or '.join(suffixes)}")
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}; make it")
    if arguments.draw:
        from vlp.graph_report.drawing import draw_report  # before the measurement, in case matplotlib is missing

    import json
    import sys
    from dataclasses import asdict

    from rich.console import Console

    from vlp.graph_report.report import graph_report
    from vlp.graph_report.tables import print_report
    from vlp.recipe import load_recipe

    report = graph_report(load_recipe(arguments.recipe, arguments.overrides), arguments.tokens)
    print_report(report, Console(width=None if sys.stdout.isatty() else 240, highlight=False))
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    if arguments.draw:
        draw_report(report, arguments.draw)


if __name__ == "__main__":
    run_command(main)
