"""Evaluate a trained run on its validation shards, print tables, write JSON.

Examples:
    python tools/evaluate.py runs/goldi_super-demo
    python tools/evaluate.py runs/clip-cc3m 'data.validation=/data/coco/{00000..00004}.tar' --task retrieval
"""

import argparse
from pathlib import Path

from vlp.errors import UserError, nearest, run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="data.validation=, data.fields.*=, evaluation.*=; the last wins",
    )
    parser.add_argument(
        "--task",
        nargs="+",
        action="extend",
        metavar="T",
        help="retrieval, questions, segmentation (default: the recipe's evaluation.tasks)",
    )
    parser.add_argument("--json", type=Path, metavar="F", help="where the result goes (default: RUN/evaluation.json)")
    arguments = parser.parse_intermixed_args()

    from rich.console import Console

    from vlp.evaluation.evaluate import TASKS, best_device, evaluate, write_result
    from vlp.evaluation.table import print_result
    from vlp.run import load_run

    given = arguments.task or []
    tasks = [task for task in given if "=" not in task]
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"--task {task}: no such task{nearest(task, list(TASKS))}; allowed are {', '.join(TASKS)}")
    overrides = arguments.overrides + [text for text in given if "=" in text]

    recipe, model = load_run(arguments.run, overrides)
    result = {"step": recipe.train.steps} | evaluate(recipe, model.to(best_device()), tasks or None)
    path = arguments.json or arguments.run / "evaluation.json"
    write_result(result, path)
    print_result(result, Console())
    print(f"{result['samples']} samples in {result['seconds']:.1f} s; written to {path}")


if __name__ == "__main__":
    run_command(main)
