"""Give the samples of shards questions and answers: an instruction model asks and answers about a caption.

Every shard is written to --out under its own name, with the field `vqa` in its JSON:
[{"question": "What color is the dog?", "answer": "Brown"}]. The same command again goes on where it stopped. Counts,
of what was rejected too, are in summary.json there.

Examples:
    python tools/prepare_vqa.py '/data/cc3m/{00000..00331}.tar' --out /data/cc3m-vqa --fields short=shortSV_captions
    python tools/prepare_vqa.py '/data/yfcc/*.tar' --out /data/yfcc-vqa --captions long \\
        --engine ray --actors 8 --gpus-per-actor 1
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

CAPTIONS = ("short", "long", "raw")
SAMPLES_AT_ONCE = 512
"""Enough to batch prompts of like length and to keep vLLM busy; their pictures wait in memory meanwhile."""


def main() -> None:
    """Parse the command line, annotate the shards, print what was written and what was not, and why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shard_arguments(parser)
    _add_question_options(parser.add_argument_group("questions"))
    _add_model_options(parser.add_argument_group("model"))
    _add_running_options(parser.add_argument_group("running"))
    args = parser.parse_args()
    check_running_options(args)

    from vlp.annotation.generation import GenerationSettings, check_generation, load_tokenizer
    from vlp.annotation.questions import PROMPT, QuestionSettings, question_annotator
    from vlp.data.sources import expand_shards

    questions = settings_of(QuestionSettings, vars(args) | {"fields": field_map(args.fields)})
    generation = settings_of(GenerationSettings, vars(args))
    shards = expand_shards(args.shards)
    if args.engine == "local":
        check_generation(generation, args.backend, args.device)
    else:  # this machine need not have what the actors have
        load_tokenizer(generation)
    annotate_as_asked(
        args,
        shards,
        partial(question_annotator, questions, generation, args.backend, args.device, args.batch_size),
        {"tool": "prepare_vqa", "prompt": PROMPT} | questions.model_dump() | generation.model_dump(),
        SAMPLES_AT_ONCE,
        captions=f"a {args.captions} caption {args.index}",
        kind=args.captions,
    )


def _add_question_options(group: Any) -> None:
    group.add_argument(
        "--captions", choices=CAPTIONS, default="short", help="kind that is asked about (default: %(default)s)"
    )
    group.add_argument(
        "--index", type=int, default=0, metavar="N", help="which caption of the kind, from 0 (default: %(default)s)"
    )
    add_fields_option(group, "short=shortSV_captions")
    group.add_argument(
        "--max-answer-words",
        type=int,
        default=10,
        metavar="N",
        help="a pair with a longer answer is rejected (default: %(default)s)",
    )
    group.add_argument("--replace", action="store_true", help="ask anew where a sample has pairs already")


def _add_model_options(group: Any) -> None:
    group.add_argument(
        "--model",
        default="microsoft/Phi-3.5-mini-instruct",
        metavar="M",
        help="instruction model by hub name, or a folder (default: %(default)s)",
    )
    group.add_argument(
        "--max-new-tokens", type=int, default=500, metavar="N", help="tokens of an answer (default: %(default)s)"
    )
    group.add_argument(
        "--context",
        type=int,
        default=4096,
        metavar="N",
        help="tokens of prompt and answer, for which memory is set aside; captions without room in it are counted "
        "and not asked about (default: %(default)s, up to which Phi-3.5 does not stretch its positions)",
    )
    group.add_argument(
        "--temperature", type=float, default=0, metavar="T", help="0 is greedy decoding (default: %(default)s)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of sampling (default: %(default)s)")


def _add_running_options(group: Any) -> None:
    group.add_argument(
        "--backend",
        choices=("auto", "transformers", "vllm"),
        default="auto",
        help="default: %(default)s, vLLM where it is installed and there is a GPU",
    )
    add_running_options(group, batch_size=32, unit="prompts of transformers")


if __name__ == "__main__":
    run_command(main)
