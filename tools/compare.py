"""Train a grid of runs one after another, and compare their evaluations over seeds.

The grid is recipes x --set values x seeds. Each run is a folder of --out; the same command again goes on where it
stopped. The table (comparison.md, .json) and the plot (.png) are written anew after every run.

Examples:
    python tools/compare.py recipes/clip.yaml recipes/superclip.yaml --seeds 3 train.steps=600
    python tools/compare.py recipes/clip.yaml recipes/superclip.yaml --seeds 3 \\
        --set 'train.batch_size=24,48,96 & train.steps=2400,1200,600' --out runs/batch-size
    python tools/compare.py recipes/goldi_super.yaml --set 'objectives.distillation=null,{}' --seeds 0,3,5 --jobs 2
    python tools/compare.py --table-only --out runs/batch-size --metric retrieval.long.agnostic.text_to_image_r1
"""

import argparse
import re
from pathlib import Path

from vlp.errors import UserError, run_command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="YAML files; key=value among them is for all runs")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="a dimension of the grid; repeat it for more. Commas in brackets or quotes do not separate; "
        "'A=1,2 & B=3,4' changes keys together",
    )
    parser.add_argument("--seeds", default="1", metavar="N", help="3 for the seeds 0,1,2, or a list: 0,3,5 or 7,")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time; each has its share of the GPUs or CPU threads"
    )
    parser.add_argument(
        "--launcher",
        metavar="C",
        help="the command before tools/train.py, as in 'deepspeed --num_gpus 8'; {job} in it is 0 to jobs - 1 "
        "(default: this Python)",
    )
    parser.add_argument(
        "--metric",
        action="append",
        metavar="M",
        help="a dotted path in evaluation.json; repeat it for more "
        "(default: text-to-image R@1 on short captions, agnostic and conditioned)",
    )
    parser.add_argument(
        "--table-only", action="store_true", help="train nothing: table and plot of what is in --out, without RECIPE"
    )
    arguments = parser.parse_intermixed_args()

    from rich.console import Console

    from vlp.comparison.grid import Run, make_grid, parse_launcher, parse_seeds
    from vlp.comparison.report import (
        choose_metrics,
        label,
        measured,
        print_comparison,
        read_comparison,
        require_measured,
        shown,
        write_comparison,
    )
    from vlp.comparison.running import check_jobs, train_grid

    overrides = [text for text in arguments.recipes if re.match("[^/=]+=", text)]
    recipes = [text for text in arguments.recipes if text not in overrides]
    failed: list[Run] = []
    if arguments.table_only:
        if arguments.recipes or arguments.set:
            raise UserError("--table-only reads the grid from --out; leave recipes, overrides and --set out")
        runs, metrics = read_comparison(arguments.out)
        metrics = arguments.metric or metrics
        require_measured(runs, arguments.metric or [])
    else:
        if not recipes:
            raise UserError("no recipe given; name at least one, as recipes/clip.yaml")
        check_jobs(arguments.jobs)
        launcher, seeds = parse_launcher(arguments.launcher), parse_seeds(arguments.seeds)
        runs, resolved = make_grid(recipes, overrides, arguments.set, seeds, arguments.out, launcher)
        metrics = choose_metrics(arguments.metric, resolved)

        def ended(run: Run) -> str:
            write_comparison(runs, metrics, arguments.out)
            numbers = measured(run)
            return ", ".join(f"{label(metric)} {shown(numbers.get(metric))}" for metric in metrics)

        write_comparison(runs, metrics, arguments.out)
        failed = train_grid(runs, arguments.jobs, ended)
    comparison = write_comparison(runs, metrics, arguments.out)
    print_comparison(comparison, arguments.out, Console())
    require_measured(runs, arguments.metric or [])
    if failed:
        print(f"{len(failed)} of {len(runs)} runs failed: {', '.join(run.name for run in failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
