"""Train a recipe.

Examples:
    deepspeed tools/train.py recipes/goldi_super.yaml
    deepspeed --num_gpus 2 tools/train.py recipes/clip.yaml train.steps=200 run.dir=runs/try
    python tools/train.py recipes/superclip.yaml --check

The same command again resumes the run where its newest checkpoint stands.
"""

import argparse
import logging

from vlp.errors import run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe's YAML, or the recipe.yaml of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in train.steps=20; the last one wins")
    parser.add_argument(
        "--check", action="store_true", help="resolve, validate, print what would be computed; no training"
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher gives it
    arguments = parser.parse_intermixed_args()

    from vlp.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    from vlp.engine.trainer import describe, train

    if arguments.check:
        describe(recipe)
    else:
        train(recipe)


if __name__ == "__main__":
    run_command(main)
